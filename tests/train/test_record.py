"What a recipe says of captions."
from tests.train.test_loaders import noise_images

from wiseft.models.testing import pico_classifier


def test_a_renamed_table_of_captions_is_the_same_training(tmp_path):
    from wiseft.methods.flyp import flyp
    from wiseft.train.learner import clip_learner
    from wiseft.train.loaders import clip_dataloaders
    from wiseft.train.record import run_recipe

    files, start, recipes = noise_images(tmp_path, 0).files(), pico_classifier(["a", "b"]), []
    for table, caption in ("one.csv", "a"), ("two.csv", "a"), ("two.csv", "another"):
        (tmp_path / table).write_text("file,caption\n" + "".join(f"{f},{caption} photo of {f}\n" for f in files))
        dls = clip_dataloaders(tmp_path, start, 2, captions=tmp_path / table)
        recipes.append(run_recipe(clip_learner(start, dls, loss=flyp, progress=False)))
    assert recipes[0] == recipes[1] != recipes[2]
