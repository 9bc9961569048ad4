"""Clients with keys of their own: who protects what, and what everyone can see of it."""

from pathlib import Path

import pytest
import torch
from conftest import plugin, tiny_plan, tiny_run

from ppbench import codec
from ppbench.attacks.jigsaw import Jigsaw
from ppbench.blocks import cut
from ppbench.data import Images
from ppbench.defense import Keys, draw_keys, keys_for_more
from ppbench.defenses.patch_shuffle import PatchShuffle
from ppbench.plan import Plan
from ppbench.ref import Ref
from ppbench.seeding import generator
from ppbench.stages.values import Keyring, Protected
from ppbench.view import Algorithm, Sealed, View

SHAPE = (3, 16, 16)


def test_every_client_has_one_key_and_an_equal_share() -> None:
    keys = draw_keys(PatchShuffle(), "client", 10, SHAPE, generator(0), clients=4)
    assert keys is not None
    assert len(keys.values["order"]) == 4
    assert len(keys.values["order"].unique(dim=0)) == 4
    assert sorted(keys.owner.bincount(minlength=4).tolist()) == [2, 2, 3, 3]
    # dealt at random: a split lists one image of every class in turn, and turns would give each client few classes
    assert keys.owner.tolist() != [i % 4 for i in range(10)]


def test_further_images_are_protected_by_the_same_clients() -> None:
    keys = draw_keys(PatchShuffle(), "client", 10, SHAPE, generator(0), clients=4)
    more = keys_for_more(PatchShuffle(), keys, "client", 6, SHAPE, generator(1), clients=4)
    assert keys is not None
    assert more is not None
    assert sorted(more.owner.bincount(minlength=4).tolist()) == [1, 1, 2, 2]
    assert more.owner.tolist() != [0, 1, 2, 3, 0, 1]  # turns would tie clients to classes, which also come in turns
    assert more.values is keys.values


def client_plan(npz: Path, attack: str, threat: str) -> Plan:
    return tiny_plan(npz, [], [{"use": attack, "threats": [threat]}],
                     defense=[{"use": "block-scrambling", "key_scope": "client", "clients": 3}])


LOOK = '''
@dataclass(frozen=True)
class Look(Attack):
    """Hold what a server sees of the clients against their keys."""
    requires = frozenset({"images", "algorithm", "key", "pairs", "oracle", "public"})
    default_threat = "full-knowledge"
    def queries(self, view):
        return view.public.pixels[:5]
    def run(self, view, priors, rng):
        from ppbench.defense import Keys
        assert view.algorithm.clients == 3
        assert torch.equal(view.release.clients, view.keys.owner)
        assert len(view.keys.values["blocks"]) == 3
        again = view.algorithm.defense.query(view.pairs.plain, Keys(view.keys.values, view.pairs.clients), rng)
        assert torch.allclose(again, view.pairs.protected, atol=1e-6)
        asked = view.public.pixels[:5]
        again = view.algorithm.defense.query(asked, Keys(view.keys.values, torch.arange(5) % 3), rng)
        assert torch.allclose(again, view.answers, atol=1e-6)
        found = view.algorithm.defense.invert(view.release, view.keys, view.image_shape)
        return Reconstruction(found[view.target_rows])
'''


def test_a_run_with_clients(tiny_npz: Path, tmp_path: Path) -> None:
    file = plugin(tmp_path, LOOK)
    result, _ = tiny_run(client_plan(tiny_npz, f"{file}:Look", "full-knowledge"), tmp_path / "runs")
    assert (result.rows[0]["status"], result.rows[0].get("reason", "")) == ("ok", "")
    assert result.rows[0]["ssim"] == pytest.approx(1)
    assert (result.rows[0]["key_scope"], result.rows[0]["clients"]) == ("client", 3)
    assert result.rows[0]["intervals_conditional_on"] == "this key and seed"


def test_who_sent_what_is_seen_but_no_key(tiny_npz: Path, tmp_path: Path) -> None:
    result, _ = tiny_run(client_plan(tiny_npz, "jigsaw", "ciphertext-only"), tmp_path / "runs")
    store = result.folder.parent / ".store"
    (view,) = (codec.load(Sealed, path / "data.safetensors") for path in (store / "view").iterdir()
               if codec.load(Sealed, path / "data.safetensors").release is not None)
    (keys,) = (codec.load(Keyring, path / "data.safetensors") for path in (store / "keys").iterdir()
               if codec.load(Keyring, path / "data.safetensors").private is not None)
    assert view.keys is None
    assert view.release is not None
    assert keys.private is not None
    assert torch.equal(view.release.clients, keys.private.owner)  # type: ignore[arg-type]


def test_the_plain_victim_has_no_clients(tiny_npz: Path, tmp_path: Path) -> None:
    result, _ = tiny_run(client_plan(tiny_npz, "jigsaw", "ciphertext-only"), tmp_path / "runs")
    released = [codec.load(Protected, path / "data.safetensors").release.clients
                for path in (result.folder.parent / ".store" / "release").iterdir()]
    assert sorted(clients is None for clients in released) == [False, True]


def test_jigsaw_pools_the_images_of_a_client() -> None:
    """Three clients, each with one order of noisy pieces that a single image does not give away."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(60, 3, 4, 4, generator=rng)
    smooth = torch.nn.functional.interpolate(coarse, (16, 16), mode="bicubic", align_corners=True)
    images = (smooth + 0.2 * torch.randn(smooth.shape, generator=rng)).clamp(0, 1)
    defense = PatchShuffle(patch=4)
    keys = draw_keys(defense, "client", 60, SHAPE, rng, clients=3)
    assert keys is not None
    release = defense.protect(Images(images, torch.zeros(60, dtype=torch.int64), torch.arange(60)), keys, rng)

    def found(scope: str, owner: torch.Tensor | None) -> torch.Tensor:
        seen = Keys(keys.values, keys.owner).owner if owner is None else owner
        sealed = Sealed(
            frozenset({"images", "algorithm"}), SHAPE, SHAPE, 6, 1, target_rows=torch.arange(6),
            release=type(release)(release.images, release.labels, release.source, clients=seen),
            algorithm=Algorithm(Ref("defenses", "patch-shuffle", {"patch": 4}, ""), scope, 8, 3))  # type: ignore[arg-type]
        return Jigsaw().run(View(sealed), {}, generator(0)).images

    def right(estimates: torch.Tensor) -> float:
        return float((cut(estimates, 4) == cut(images[:6], 4)).flatten(2).all(2).double().mean())

    pooled, apart = right(found("client", None)), right(found("client", torch.arange(60)))
    assert pooled == 1
    assert apart < 0.9
