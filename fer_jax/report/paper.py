"""What the paper prints, typed from it once; everything else in a report comes from records.

Nour Meeki, Abdelmalek Amine, Mohamed Amine Boudia, Reda Mohamed Hamou: *Deep Learning for Non
Verbal Sentiment Analysis: Facial Emotional Expressions*. EasyChair Preprint 3014, 22 March 2020,
https://easychair.org/publications/preprint/vn5M
"""

from typing import NamedTuple

# Tables 4 and 5: accuracy, loss and hours. Which split they are on goes unsaid.
PAPER = {
    "arch01": (0.77, 0.70, 120),
    "arch02_bs16": (0.718, 0.757, 72),
    "arch02_bs96": (0.76, 0.63, 48),
    "arch03": (0.889, 0.29, 72),
}
TITLES = {
    "arch01": "Architecture 01",
    "arch02_bs16": "Architecture 02, batch 16",
    "arch02_bs96": "Architecture 02, batch 96",
    "arch03": "Architecture 03",
}
# Table 3, Architecture 01: images by (true class, predicted class) in the order of our CLASSES. Its
# row sums are PublicTest's class counts (`fer_jax.data.sources.COUNTS["valid"]`).
CONFUSION = (
    (161, 4, 75, 65, 76, 10, 76),
    (9, 19, 6, 5, 10, 0, 7),
    (41, 1, 187, 49, 91, 47, 80),
    (26, 0, 33, 709, 36, 16, 75),
    (46, 2, 81, 79, 274, 21, 150),
    (16, 1, 46, 37, 7, 292, 16),
    (37, 0, 43, 83, 71, 18, 355),
)


class Related(NamedTuple):
    """A row of the paper's tables 1 and 2, and our experiment beside it."""

    table: int  # 1: other data sets; 2: FER2013
    work: str
    network: str
    experiment: str  # a file in experiments/
    printed: float  # the accuracy that the paper prints
    what: str  # split and data set of that accuracy, as far as they are known


_GIANNOPOULOS = "FER2013, one of three tasks (emotion or none, which, both); task and split unsaid"
_FLICKR = "Flickr images, no faces"
_YOU = "the paper says Flickr; the work says Twitter images of two sentiments, no faces"

RELATED = (
    Related(1, "Fathallah 2017", "4 conv, 3 max-pool, FC", "fathallah", 0.969,
            "CK+, KDEF, RaFD, MUG: posed faces, six classes"),
    Related(1, "Jindal & Singh 2015", "5 conv, 2 FC", "jindal", 0.535,
            f"{_FLICKR}; pretrained on ImageNet"),
    Related(1, "You 2015", "PCNN before the progressive step", "pcnn", 0.781, _YOU),
    Related(1, "You 2015", "PCNN, progressive", "pcnn_progressive", 0.781, _YOU),
    Related(1, "Gajarla & Gupta 2015", "ResNet-50", "resnet50", 0.733,
            f"{_FLICKR}, five sentiments; pretrained on ImageNet"),
    Related(2, "Serengil 2018", "Architecture 01's", "serengil", 0.92,
            "its author's accuracy on FER2013's training images, 0.574 on PublicTest"),
    Related(2, "Moran 2019", "Gudi's, 3 conv", "moran", 0.65,
            "FER2013, 9,000 validation images taken from all of it (0.66 in the paper's text)"),
    Related(2, "Giannopoulos 2018", "AlexNet", "alexnet", 0.82, _GIANNOPOULOS),
    Related(2, "Giannopoulos 2018", "GoogLeNet", "googlenet", 0.87, _GIANNOPOULOS),
    Related(2, "Nishchal 2018", "sequential fully-CNN", "fully_cnn", 0.66,
            "FER2013, split unsaid; the published code's is PublicTest and PrivateTest together"),
    Related(2, "Nishchal 2018", "mini-XCEPTION", "mini_xception", 0.95,
            "FER2013, split unsaid, and which Xception; this one's published weights are named "
            "0.66, on PublicTest and PrivateTest together"),
    Related(2, "Nishchal 2018", "Xception", "xception", 0.95,
            "FER2013, split unsaid, and which Xception"),
)  # fmt: skip
