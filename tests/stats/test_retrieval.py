"Recall and ranks: as other libraries compute them, and intervals that cover."
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wiseft.stats.intervals import mean_difference, mean_of_set
from wiseft.stats.retrieval import RETRIEVAL, places, recall_columns

WAYS = "image to text", "text to image"


def gallery(n, rng, most=5, noise=0.9, dim=32):
    "Rows of length 1 for n images and their captions, one to `most` each, and the pairs."
    owner = np.repeat(np.arange(n), rng.integers(1, most + 1, n))
    images = F.normalize(torch.as_tensor(rng.normal(size=(n, dim)), dtype=torch.float32), dim=1)
    harder = np.repeat(rng.normal(0, 0.2, n), np.bincount(owner))  # some images have poor captions
    texts = images[owner] + torch.as_tensor((noise + harder)[:, None] * rng.normal(size=(len(owner), dim))).float()
    return images, F.normalize(texts, dim=1), torch.as_tensor(np.stack([owner, np.arange(len(owner))], 1))


def recall_at_k(scores, positive, k):
    "CLIP_benchmark's formula: rows that have a positive among the k highest scores."
    return positive.gather(1, scores.topk(k, dim=1).indices).any(1).float().mean().item()


@pytest.mark.parametrize("most", [1, 5])
def test_recall_is_that_of_clip_benchmark(most):
    rng = np.random.default_rng(0)
    for n in (40, 150, 300):
        images, texts, pairs = gallery(n, rng, most)
        scores, positive = images @ texts.T, torch.zeros(n, len(texts), dtype=torch.bool)
        positive[tuple(pairs.T)] = True
        columns = recall_columns(images, texts, pairs)
        for k in (1, 5, 10):
            expected = recall_at_k(scores, positive, k), recall_at_k(scores.T, positive.T, k)
            for way, value in zip(WAYS, expected):
                assert columns[f"{way} recall@{k}"].mean() == pytest.approx(value, abs=1e-6)
            assert columns[f"recall@{k}"].mean() == pytest.approx(np.mean(expected), abs=1e-6)


def test_recall_and_rank_are_those_of_open_clips_training():
    get_clip_metrics = pytest.importorskip("open_clip_train.train").get_clip_metrics
    images, texts, pairs = gallery(300, np.random.default_rng(1), most=1, noise=1.2)
    theirs, ours = get_clip_metrics(images, texts, 1.0), recall_columns(images, texts, pairs)
    for way in WAYS:
        for k in (1, 5, 10):
            assert ours[f"{way} recall@{k}"].mean() == pytest.approx(theirs[f"{way.replace(' ', '_')}_R@{k}"])
        assert np.floor(ours[f"{way} median rank"].mean() + 1e-9) == theirs[f"{way.replace(' ', '_')}_median_rank"] > 1


def test_ties_count_as_in_random_order():
    "Features of few values: the mean over many orders of images and captions, each with tiny differences."
    rng = np.random.default_rng(0)
    images, texts = (torch.as_tensor(rng.integers(0, 3, (n, 2)), dtype=torch.float32) / 8 for n in (12, 20))
    pairs = torch.as_tensor(np.stack([np.arange(20) % 12, np.arange(20)], 1))
    expected, positive = {k: [] for k in (1, 5)}, torch.zeros(12, 20, dtype=torch.bool)
    positive[tuple(pairs.T)] = True
    for _ in range(4000):
        scores = images @ texts.T + torch.as_tensor(rng.uniform(0, 1e-4, (12, 20)))
        for k in expected:
            expected[k].append((recall_at_k(scores, positive, k), recall_at_k(scores.T, positive.T, k)))
    columns = recall_columns(images, texts, pairs)
    for k, values in expected.items():
        for way, value in zip(WAYS, np.mean(values, 0)):
            assert columns[f"{way} recall@{k}"].mean() == pytest.approx(value, abs=0.008)


def test_blocks_change_nothing():
    images, texts, pairs = gallery(60, np.random.default_rng(2))
    whole = places(images, texts, pairs)
    for cells in (1, 500, 5000):
        for a, b in zip(places(images, texts, pairs, cells)[:2], whole):
            assert (a.above == b.above).all() and (a.equal == b.equal).all() and (a.own == b.own).all()


DRAWS = 400


@pytest.mark.slow
@pytest.mark.parametrize("n", [100, 400, 1500])
def test_intervals_cover_when_galleries_are_drawn(n):
    """Recall at this size of the gallery is the mean over galleries; of a difference, that of the difference.

    Images compete in a ranking, so galleries are drawn, and not rows.
    """
    rng, draws = np.random.default_rng(n), DRAWS if n < 1000 else 150
    names = [m for m in RETRIEVAL if "rank" not in m or n < 1000]
    values, intervals = {m: [] for m in [*names, "change"]}, {m: [] for m in [*names, "change"]}
    for _ in range(draws):
        images, texts, pairs = gallery(n, rng, noise=1.1)
        columns = recall_columns(images, texts, pairs)
        worse = F.normalize(images + 0.1 * torch.as_tensor(rng.normal(size=images.shape)).float(), dim=1)
        after = recall_columns(worse, texts, pairs)["recall@1"]
        for m in names:
            value, *interval = mean_of_set(columns[m], bounded="rank" not in m)
            values[m].append(value)
            intervals[m].append(interval)
        change, *interval = mean_difference({"": columns["recall@1"]}, {"": after})
        values["change"].append(change)
        intervals["change"].append(interval)
    for m in values:
        truth, (low, high) = np.mean(values[m]), np.array(intervals[m]).T
        assert ((low <= truth) & (truth <= high)).mean() >= 0.93 - 1.6 * np.sqrt(0.93 * 0.07 / draws), m
