"What runs in an everyday session is the core; extensions are loaded by those who use them."
from conftest import python

EVERYDAY = """
import sys
from wiseft.all import finetune, image_folder, interpolate, load_clip, load_suite, sweep, zeroshot_classifier

suite = load_suite("icons")
classifier = zeroshot_classifier(load_clip(), suite.classnames, "icons")
images = suite.train.subset(range(8))
tuned = finetune(classifier, images, epochs=1, batch_size=4, progress=False)
sweep(classifier, tuned, images, alphas=[.5], progress=False)
interpolate(classifier, tuned, .5)
print(*[m for m in sys.modules if m.startswith(("wiseft.bench", "wiseft.analysis.ask", "wiseft.show", "wiseft.shell"))])
"""


def test_an_everyday_session_loads_no_extension():
    assert python("-c", EVERYDAY).stdout.split() == []
