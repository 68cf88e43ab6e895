"""Small runs, and what they leave."""

from vastmax.tasks.lm.config import LMConfig

SMALL = {"width": 8, "num_samples": 20, "batch_size": 4, "seq_len": 8, "points": 3, "point_tokens": 100}


def small(text, **options):
    return LMConfig(**{"data": str(text), "epochs": 1.0, **SMALL, **options})


def losses(folder):
    return (folder / "losses.csv").read_text()
