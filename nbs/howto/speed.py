"""Time of a forward pass of image towers, one thread, float32, side by side in one run; ViT-B-32 is 1.

  python nbs/howto/speed.py    writes nbs/howto/speed.csv
"""
from pathlib import Path
from time import perf_counter

import open_clip
import pandas as pd
import torch

MODELS = "ViT-B-32", "RN50", "ViT-B-16", "convnext_base_w", "ViT-L-14", "ViT-L-14-336"
IMAGES, ROUNDS = 2, 7


def tower(name):
    "An image tower with random weights, and images of its size."
    visual = open_clip.create_model(name).visual.eval()
    side = open_clip.get_model_config(name)["vision_cfg"]["image_size"]
    return visual, torch.randn(IMAGES, 3, side, side)


@torch.no_grad()
def seconds(visual, images):
    began = perf_counter()
    visual(images)
    return perf_counter() - began


def one_round(towers):
    return {name: seconds(*tower) for name, tower in towers.items()}


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    towers = {name: tower(name) for name in MODELS}
    rounds = [one_round(towers) for _ in range(ROUNDS)]
    ratios = pd.DataFrame(rounds[1:])  # the first warms up
    ratios = ratios.div(ratios["ViT-B-32"], axis=0).median().round(1)
    table = ratios.rename_axis("model").reset_index(name="time")
    table.to_csv(Path(__file__).with_suffix(".csv"), index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
