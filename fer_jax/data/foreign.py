"""Says what files are that are taken for FER2013 and are something else, and what to do then."""

import csv
import re
from collections.abc import Iterable

KAGGLE = "msambare/fer2013"  # the JPEG mirror, needs no account
ADVICE = (
    f"FER2013 is archive.zip of kaggle.com/datasets/{KAGGLE}, or fer2013.tar.gz, fer2013.csv or "
    "icml_face_data.csv of the competition; faces of your own train with --config.data.name=folder"
)
_COMPETITION = "take icml_face_data.csv or fer2013.tar.gz from the same place"
_AGAIN = "copy or download it again"
_CONVERT = "save it as CSV, with columns emotion,pixels,Usage"

_PICTURES = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "bmp", "dib", "gif", "webp", "tif", "tiff", "heic"),
    *("heif", "avif", "pgm", "ppm", "pbm", "pnm", "jp2"),
)

# The first bytes of a file: (bytes, what it is, what to do)
_MAGIC = (
    (b"PAR1", "a Parquet file", _CONVERT),
    (b"ARROW1", "an Arrow file", _CONVERT),
    (b"\x93NUMPY", "a NumPy file", _CONVERT),
    (b"\x89HDF", "an HDF5 file", _CONVERT),
    (b"SQLite format 3", "an SQLite database", _CONVERT),
    (b"\xd0\xcf\x11\xe0", "an Excel file", _CONVERT),
    (b"\x80\x02", "a Python pickle, which is never opened", _CONVERT),
    (b"\x80\x03", "a Python pickle, which is never opened", _CONVERT),
    (b"\x80\x04", "a Python pickle, which is never opened", _CONVERT),
    (b"\x80\x05", "a Python pickle, which is never opened", _CONVERT),
    (b"Rar!", "a RAR archive", "unpack it and give the folder"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it and give the folder"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive", "unpack it and give the folder"),
    (b"\x1f\x9d", "a compressed file of compress(1)", "unpack it and give the folder"),
    (b"MSCF", "a cabinet archive", "unpack it and give the folder"),
    (b"%PDF", "a PDF document", ADVICE),
    (b"\xff\xd8\xff", "one JPEG picture", ADVICE),
    (b"\x89PNG", "one PNG picture", ADVICE),
    (b"PK\x07\x08", "one part of a divided zip archive", "join the parts"),
    (b"\xff\xfe", "text in UTF-16", "save it as UTF-8"),
    (b"\xfe\xff", "text in UTF-16", "save it as UTF-8"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run git lfs pull"),
    (b"/annex/objects", "a git-annex pointer, not the file itself", "run git annex get"),
    (b"../.git/annex/objects", "a git-annex pointer, not the file itself", "run git annex get"),
)
_TEXTS = (  # the same of text, after blanks, in lower case
    (b"<!doctype html", "a web page, not data", "download it where you are logged in"),
    (b"<html", "a web page, not data", "download it where you are logged in"),
    (b"<?xml", "XML, such as a server's error, not data", _AGAIN),
    (b"<error", "a server's error, not data", _AGAIN),
    (b"{", "JSON, such as a server's error, not data", _AGAIN),
)

# Headers of tables that go with FER2013, in lower case.
_HEADERS = (
    (
        ("emotion", "pixels"),
        "is the competition's train.csv, which does not say which rows are PublicTest and "
        f"PrivateTest (it has no column Usage); {_COMPETITION}",
    ),
    (("pixels",), f"is the competition's test.csv, which has no labels; {_COMPETITION}"),
    (("emotion",), f"holds labels without pixels, like a submission; {_COMPETITION}"),
    (
        ("usage", "image name", "neutral"),
        "is fer2013new.csv of FER+, votes without pixels; take FER2013 itself: " + ADVICE,
    ),
)

# Names of members: (pattern, what they are)
_NAMES = (
    (
        r"(.*/)?(train|test)/[^/]+/im\d+\.png",
        "is the PNG copy of FER2013 (train/angry/im0.png), which has lost the numbers that say "
        "which pictures are PublicTest and which PrivateTest; renaming does not help",
    ),
    (r"(.*/)?(fer2013(train|valid|test)/.*|fer\d{7}\.png)", "holds the pictures of FER+"),
    (
        r"(.*/)?((train|test)_\d{5}(_aligned)?\.(jpg|png)|list_patition_label\.txt)",
        "is RAF-DB, another data set",
    ),
    (
        r"(.*/)?(annotations/\d+_(exp|aro|val|lnd)\.npy|image\d{7}\.(jpg|png))",
        "is AffectNet, another data set",
    ),
    (r"(.*/)?s\d{3}_\d{3}_\d{6,8}\.(png|tiff?)", "is CK+ (Cohn-Kanade), another data set"),
    (
        r"(.*/)?[a-z]{2}\.(an|di|fe|ha|ne|sa|su)\d\.\d+\.(tiff?|png|jpg)",
        "is JAFFE, another data set",
    ),
    (
        r"(.*/)?[ab][fm]\d\d(an|di|af|ha|ne|sa|su)(s|hl|hr|fl|fr)\.jpe?g",
        "is KDEF, another data set",
    ),
    (
        rf"(.*/)?(train|test|val|valid|validation)/[^/]+/[^/]+\.({'|'.join(_PICTURES)})",
        "holds pictures in folders of classes, but without FER2013's names (Training_<number>.jpg, "
        "PublicTest_..., PrivateTest_...), which say the split of each",
    ),
)


def is_picture(name: str) -> bool:
    """Returns whether a file is a picture, by its name."""
    return name.lower().rpartition(".")[2] in _PICTURES


def describe_head(head: bytes) -> str | None:
    """Says what a file is by its first bytes ("is ..."), or None where that is not known."""
    if not head:
        return f"is empty (0 bytes); {_AGAIN}"
    if not head.strip(b"\0"):
        return f"holds only zeros, like a download that did not finish; {_AGAIN}"
    for magic, what, advice in _MAGIC:
        if head.startswith(magic):
            return f"is {what}; {advice}"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for start, what, advice in _TEXTS:
        if text[:32].lower().startswith(start):
            return f"is {what}; {advice}"
    return _describe_table(text.split(b"\n", 1)[0].strip())


def _describe_table(line: bytes) -> str | None:
    for separator in (b";", b"\t", b"|"):
        if sorted(line.replace(b'"', b"").lower().split(separator)) == [
            b"emotion",
            b"pixels",
            b"usage",
        ]:
            return f"has fields parted by {separator.decode()!r}; save it with commas"
    try:
        fields = next(csv.reader([line[:4096].decode("latin-1")], skipinitialspace=True), [])
    except csv.Error:
        return None
    columns = tuple(field.strip().lower() for field in fields)
    for header, what in _HEADERS:
        if columns[: len(header)] == header and (len(columns) == len(header) or len(header) == 3):
            return what
    if re.fullmatch(rb'"?[0-6]"? *, *"?(\d{1,3}[ "]|\w*Test|Training).*', line, re.DOTALL):
        return "has no header; write emotion,pixels,Usage, its columns, as the first line"
    return None


def describe_names(names: Iterable[str]) -> str | None:
    """Says what a folder or an archive is by its members' names, or None."""
    names = [name.lower() for name in names]
    for pattern, what in _NAMES:
        if any(map(re.compile(pattern).fullmatch, names)):
            return f"{what}. {ADVICE}"
    return None
