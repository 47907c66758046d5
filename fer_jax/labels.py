"""Names that every room uses: the seven classes, the three splits, and an image's shape."""

# In the order of FER2013's labels 0 to 6, which is not the alphabet's.
CLASSES = ("Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Neutral")
NUM_CLASSES = len(CLASSES)

# Names under which the seven are known, in lower case.
CLASS_OF_NAME = {
    **dict.fromkeys(("anger", "angry"), "Anger"),
    **dict.fromkeys(("disgust", "disgusted"), "Disgust"),
    **dict.fromkeys(("fear", "fearful", "afraid", "scared"), "Fear"),
    **dict.fromkeys(("happiness", "happy", "joy"), "Happiness"),
    **dict.fromkeys(("sadness", "sad"), "Sadness"),
    **dict.fromkeys(("surprise", "surprised"), "Surprise"),
    "neutral": "Neutral",
}

# The competition's Training, PublicTest and PrivateTest.
SPLITS = ("train", "valid", "test")

SIDE = 48  # pixels
IMAGE_SHAPE = (SIDE, SIDE, 1)  # height, width, channels of every image
