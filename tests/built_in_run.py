"""What is in the built-in suite, beside its floor and ceiling."""

DEFENSES = ("none", "constant", "pixelate", "block-scrambling", "patch-shuffle", "mixup", "bn-synthesis")
YARDSTICKS = ("blind", "key-holder")
ATTACKS = ("jigsaw", "vit-inverter", "gradient-matching", "gan-inversion", "memorization")
