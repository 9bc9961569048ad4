"""What cells are granted: through whole runs, every capability is what it says, under the victim's key."""

from pathlib import Path

import pandas as pd
from conftest import plugin, tiny_plan, tiny_run


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "tiny" / "results.csv").set_index("cell")


def test_a_threat_model_that_grants_too_little_is_named(tiny_npz: Path, tmp_path: Path) -> None:
    tiny_run(tiny_plan(tiny_npz, ["none"], [{"use": "key-holder", "threats": ["ciphertext-only"]},
                                            {"use": "as-released", "threats": ["federated-server"]}]), tmp_path)
    rows = table(tmp_path).set_index("attack")
    assert set(rows.status) == {"not-applicable"}
    assert rows.loc["key-holder", "missing"] == "key"
    assert rows.loc["as-released", "missing"] == "images"


def test_an_oracle_answers_with_the_victims_key(tiny_npz: Path, tmp_path: Path) -> None:
    file = plugin(tmp_path, """
@dataclass(frozen=True)
class Chosen(Attack):
    "Name every pixel, see where it goes, and undo it."
    requires = frozenset({"images", "oracle"})
    default_threat = "chosen-plaintext"
    def queries(self, view):
        size = torch.tensor(view.image_shape).prod()
        codes = torch.arange(size)
        return torch.stack([codes % 256, codes // 256]).reshape(2, *view.image_shape) / 255
    def run(self, view, priors, rng):
        low, high = (view.answers * 255).round().long().flatten(1)
        back = torch.zeros_like(view.images).flatten(1)
        back[:, low + 256 * high] = view.images.flatten(1)
        return Reconstruction(back.reshape(-1, *view.image_shape))
""")
    tiny_run(tiny_plan(tiny_npz, ["block-scrambling"], [f"{file}:Chosen"]), tmp_path)
    assert table(tmp_path).ssim.tolist() == [1.0]


def test_known_pairs_are_under_the_victims_key(tiny_npz: Path, tmp_path: Path) -> None:
    file = plugin(tmp_path, """
@dataclass(frozen=True)
class Pairs(Attack):
    requires = frozenset({"images", "pairs", "public"})
    default_threat = "known-plaintext"
    def run(self, view, priors, rng):
        plain, protected = view.pairs.plain.flatten(1), view.pairs.protected.flatten(1)
        assert torch.equal(plain, view.public.pixels[:len(plain)].flatten(1))
        source = torch.cdist(protected.T, plain.T).argmin(1)
        back = torch.zeros_like(view.images).flatten(1)
        back[:, source] = view.images.flatten(1)
        return Reconstruction(back.reshape(-1, *view.image_shape))
""")
    threat = [{"name": "kp40", "base": "known-plaintext", "pairs": 40}]
    plan = tiny_plan(tiny_npz, ["block-scrambling"], [{"use": f"{file}:Pairs", "threats": ["kp40"]}], threat=threat)
    tiny_run(plan, tmp_path)
    assert table(tmp_path).ssim.tolist() == [1.0]


def test_a_trainer_with_full_knowledge_reads_the_weights_it_trained(tiny_npz: Path, tmp_path: Path) -> None:
    tiny_run(tiny_plan(tiny_npz, ["none"], [{"use": "memorization", "threats": ["full-knowledge"]}]), tmp_path)
    assert table(tmp_path).ssim.tolist() == [1.0]


def test_the_server_may_collude_with_the_key_owner(tiny_npz: Path, tmp_path: Path) -> None:
    chain = {"use": "memorization", "then": {"use": "key-holder"}, "threats": ["full-knowledge"]}
    tiny_run(tiny_plan(tiny_npz, ["block-scrambling", "patch-shuffle"], [chain]), tmp_path)
    assert table(tmp_path).ssim.tolist() == [1.0, 1.0]


def test_the_oracle_answers_no_more_than_it_may(tiny_npz: Path, tmp_path: Path) -> None:
    file = plugin(tmp_path, """
class Greedy(Attack):
    requires = frozenset({"images", "oracle"})
    default_threat = "chosen-plaintext"
    def queries(self, view):
        return torch.zeros(17, *view.image_shape)
    def run(self, view, priors, rng):
        return Reconstruction(view.images)
""")
    tiny_run(tiny_plan(tiny_npz, ["none"], [f"{file}:Greedy"]), tmp_path)
    (row,) = table(tmp_path).to_dict("records")
    assert row["status"] == "failed"
    assert "queries = 16" in row["reason"]


MIXES = """
@dataclass(frozen=True)
class Darker(PerImageDefense):
    "Send training images darker, and test images as they are."
    def encrypt(self, images, key, rng):
        return images / 2
    def query(self, images, keys, rng):
        return images
"""
PAIRS = """
@dataclass(frozen=True)
class LooksAtPairs(Attack):
    requires = frozenset({"pairs", "oracle", "public"})
    default_threat = "full-knowledge"
    def queries(self, view):
        return view.public.pixels[:2]
    def run(self, view, priors, rng):
        found = torch.rand(view.n_targets, *view.image_shape, generator=rng)
        return Reconstruction(found, note=f"{len(view.pairs.plain)} pairs "
                              f"{(view.pairs.protected - view.pairs.plain / 2).abs().max():.2f} "
                              f"{(view.answers - view.public.pixels[:2] / 2).abs().max():.2f}")
"""


def test_pairs_and_answers_are_protected_like_private_images_not_like_queries(tiny_npz: Path, tmp_path: Path) -> None:
    files = plugin(tmp_path, MIXES, "mixes.py"), plugin(tmp_path, PAIRS)
    result, _ = tiny_run(tiny_plan(tiny_npz, [f"{files[0]}:Darker"], [f"{files[1]}:LooksAtPairs"]), tmp_path)
    assert result.rows[0].get("reason", "") == ""
    assert result.rows[0]["note"] == "16 pairs 0.00 0.00"


def test_a_release_without_partners_has_no_pairs_and_no_oracle(tiny_npz: Path, tmp_path: Path) -> None:
    file = plugin(tmp_path, PAIRS)
    plan = tiny_plan(tiny_npz, [], ["key-holder", f"{file}:LooksAtPairs"],
                     defense=[{"use": "bn-synthesis", "steps": 1, "teacher_epochs": 1}])
    result, _ = tiny_run(plan, tmp_path)
    assert [row["status"] for row in result.rows] == ["ok", "not-applicable"]
    assert "nothing to ask an oracle" in result.rows[1]["reason"]
