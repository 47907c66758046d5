"""Names that every room uses: the seven classes, the three splits, and an image's shape."""

# In the order of FER2013's labels 0 to 6, which is not the alphabet's.
CLASSES = ("Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Neutral")
NUM_CLASSES = len(CLASSES)

# The competition's Training, PublicTest and PrivateTest.
SPLITS = ("train", "valid", "test")

SIDE = 48  # pixels
IMAGE_SHAPE = (SIDE, SIDE, 1)  # height, width, channels of every image
