"""Every bad input is refused by name; every good one gives the same examples."""

import gzip
import io
import random
import re
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fer_jax.data import sources
from fer_jax.errors import DataError

ARCHIVE = Path(__file__).parents[2] / "shared" / "fer2013" / "archive.zip"
HEADER = "emotion,pixels,Usage"
USAGES = ("Training", "Training", "PublicTest", "PrivateTest")


def pixels_of(seed):
    return np.random.default_rng(seed).integers(0, 256, 48 * 48, dtype=np.uint8)


def row_of(label, usage, seed=0):
    return f"{label},{' '.join(map(str, pixels_of(seed)))},{usage}"


ROWS = [row_of(label, usage, label) for label, usage in enumerate(USAGES)]


def jpeg_of(seed=0, size=(48, 48), mode="L", kind="jpeg"):
    image = Image.fromarray(pixels_of(seed).reshape(48, 48)).resize(size).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


GOOD = {
    "train/angry/Training_7.jpg": jpeg_of(0),
    "train/neutral/Training_10.jpg": jpeg_of(1),
    "test/sad/PublicTest_3.jpg": jpeg_of(2),
    "test/fear/PrivateTest_2.jpg": jpeg_of(3),
}


def write_csv(path, rows=ROWS, header=HEADER, end="\n"):
    data = header.encode() + end.encode()
    data += b"".join((r if isinstance(r, bytes) else r.encode()) + end.encode() for r in rows)
    path.write_bytes(data)
    return path


def write_zip(path, members, prefix="", compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(prefix + name, data)
    return path


def write_folder(path, members):
    path.mkdir(exist_ok=True)
    for name, data in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def read(path):
    return sources.read_source(path, partial=True)


# Good input


def check_csv_splits(splits):
    np.testing.assert_array_equal(splits["train"][0][1].ravel(), pixels_of(1))
    assert splits["train"][0].shape == (2, 48, 48, 1)
    assert splits["train"][0].dtype == splits["train"][1].dtype == np.uint8
    assert {s: list(x[1]) for s, x in splits.items()} == {
        "train": [0, 1],
        "valid": [2],
        "test": [3],
    }
    assert list(splits["train"][2]) == [b"Training_000000", b"Training_000001"]
    assert list(splits["test"][2]) == [b"PrivateTest_000003"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv(tmp_path, end):
    path = write_csv(tmp_path / "fer2013.csv", end=end)
    assert sources.find_kind(path) == "csv"
    splits, sha256 = read(path)
    check_csv_splits(splits)
    assert sha256 == sources.source_sha256(path)


def test_csv_needs_no_last_newline(tmp_path):
    path = write_csv(tmp_path / "fer2013.csv")
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    check_csv_splits(read(path)[0])


def test_icml_csv(tmp_path):
    rows = [", ".join(np.array(row.split(","))[[0, 2, 1]]) for row in ROWS]
    path = write_csv(tmp_path / "icml_face_data.csv", rows, "emotion, Usage, pixels")
    assert sources.find_kind(path) == "icml_csv"
    check_csv_splits(read(path)[0])


def test_tar_of_the_competition(tmp_path):
    data = write_csv(tmp_path / "x.csv").read_bytes()
    members = {
        "fer2013/README": b"read me",
        "fer2013/fer2013.csv": data,
        "fer2013/fer2013.bib": b"",
    }
    path = write_tar(tmp_path / "fer2013.tar.gz", members)
    assert sources.find_kind(path) == "csv"
    splits, sha256 = read(path)
    check_csv_splits(splits)
    assert sha256 == sources.source_sha256(path)


def check_jpeg_splits(splits):
    # 7 before 10: by number, not by name
    assert list(splits["train"][2]) == [b"Training_7", b"Training_10"]
    assert {s: list(x[1]) for s, x in splits.items()} == {
        "train": [0, 6],
        "valid": [4],
        "test": [2],
    }
    expected = np.asarray(Image.open(io.BytesIO(GOOD["test/sad/PublicTest_3.jpg"])))
    np.testing.assert_array_equal(splits["valid"][0][0, ..., 0], expected)


@pytest.mark.parametrize("prefix", ["", "fer2013/"])
def test_zip(tmp_path, prefix):
    extra = {"__MACOSX/train/angry/._Training_7.jpg": b"x", "train/.DS_Store": b"x", "README": b"x"}
    path = write_zip(tmp_path / "archive.zip", GOOD | extra, prefix)
    assert sources.find_kind(path) == "jpeg"
    splits, sha256 = read(path)
    check_jpeg_splits(splits)
    assert sha256 == sources.source_sha256(path)


@pytest.mark.parametrize("nested", [False, True])
def test_folder(tmp_path, nested):
    write_folder(tmp_path / "fer2013", GOOD | {"train/.DS_Store": b"x", "README": b"x"})
    path = tmp_path if nested else tmp_path / "fer2013"
    assert sources.find_kind(path) == "jpeg"
    splits, sha256 = read(path)
    check_jpeg_splits(splits)
    assert sha256 == sources.source_sha256(path)


def test_sha256_of_a_folder_sees_every_change(tmp_path):
    digests = {sources.source_sha256(write_folder(tmp_path / "a", GOOD))}
    digests.add(sources.source_sha256(write_folder(tmp_path / "b", GOOD)))
    assert len(digests) == 1
    renamed = {n.replace("Training_7", "Training_8"): d for n, d in GOOD.items()}
    digests.add(sources.source_sha256(write_folder(tmp_path / "c", renamed)))
    changed = GOOD | {"test/fear/PrivateTest_2.jpg": jpeg_of(9)}
    digests.add(sources.source_sha256(write_folder(tmp_path / "d", changed)))
    assert len(digests) == 3


def test_one_number_in_two_classes_is_two_examples(tmp_path):
    path = write_zip(tmp_path / "a.zip", GOOD | {"train/fear/Training_10.jpg": jpeg_of(5)})
    splits, _ = read(path)
    assert list(splits["train"][1]) == [0, 2, 6]


# Bad rows: (what is done to the third row, what the message says)

ROW = ROWS[2]
BAD_ROWS = {
    "empty": ("", "1 fields"),
    "blank": ("   ", "1 fields"),
    "one field": ("3", "1 fields"),
    "two fields": (ROW.rsplit(",", 1)[0], "2 fields"),
    "four fields": (ROW + ",1", "4 fields"),
    "header again": (HEADER, "Usage is 'Usage'"),
    "label 7": ("7" + ROW[1:], "emotion is '7'"),
    "label -1": ("-1" + ROW[1:], "emotion is '-1'"),
    "label 2.0": ("2.0" + ROW[1:], "emotion is '2.0'"),
    "label word": ("Fear" + ROW[1:], "emotion is 'Fear'"),
    "label missing": (ROW[1:], "emotion is ''"),
    "label quoted": ('"2"' + ROW[1:], "emotion is"),
    "usage unknown": (ROW.replace("PublicTest", "Test"), "Usage is 'Test'"),
    "usage in lower case": (ROW.replace("PublicTest", "publictest"), "Usage is 'publictest'"),
    "usage missing": (ROW.replace("PublicTest", ""), "Usage is ''"),
    "usage not ascii": (ROW.replace("PublicTest", "Tést"), "Usage is"),
    "no pixels": ("2,,PublicTest", "1 pixels"),
    "comma for a blank": (ROW.replace(" ", ",", 1), "4 fields"),
    "2303 pixels": ("2," + " ".join(["9"] * 2303) + ",PublicTest", "2303 pixels"),
    "2305 pixels": ("2," + " ".join(["9"] * 2305) + ",PublicTest", "2305 pixels"),
    "pixel 256": ("2," + " ".join(["256"] * 2304) + ",PublicTest", "a pixel is '256'"),
    "pixel -1": ("2," + " ".join(["-1"] * 2304) + ",PublicTest", "a pixel is '-1'"),
    "pixel 1.5": ("2," + " ".join(["1.5"] * 2304) + ",PublicTest", "a pixel is '1.5'"),
    "pixel nan": ("2," + " ".join(["nan"] * 2304) + ",PublicTest", "a pixel is 'nan'"),
    "pixel 1e2": ("2," + " ".join(["1e2"] * 2304) + ",PublicTest", "a pixel is '1e2'"),
    "pixel 0x1f": ("2," + " ".join(["0x1f"] * 2304) + ",PublicTest", "a pixel is '0x1f'"),
    "pixel 1_0": ("2," + " ".join(["1_0"] * 2304) + ",PublicTest", "a pixel is '1_0'"),
    "pixel huge": ("2," + " ".join(["9" * 99] * 2304) + ",PublicTest", "a pixel is '9"),
    "pixel word": (ROW.replace(" ", " x", 1), "a pixel is 'x"),
    "arabic digits": ("2," + " ".join(["٣"] * 2304) + ",PublicTest", "a pixel is"),
    "leading zero": ("2," + " ".join(["07"] * 2304) + ",PublicTest", "a pixel is '07'"),
    "two blanks": (ROW.replace(" ", "  ", 1), "2305 pixels"),
    "tab": (ROW.replace(" ", "\t", 1), "2303 pixels"),
    "semicolons": (ROW.replace(",", ";"), "1 fields"),
    "quoted": ("2," + '"' + " ".join(["9"] * 2304) + '",PublicTest', "a pixel is '\"9'"),
    "NUL byte": (ROW.replace(" ", " \0", 1), "a pixel is '\\x00"),
    "NUL row": ("\0" * 100, "1 fields"),
    "carriage return inside": (ROW.replace(" ", "\r", 1), "2303 pixels"),
    "broken in two": (ROW.replace(" ", "\n", 1), "2 fields"),
    "not UTF-8": (ROW.encode().replace(b" ", b" \xff\xfe", 1), "a pixel is 'ÿþ"),
    "UTF-16": (ROW.encode("utf-16"), "Usage is '\\x00P"),
    "brackets": (ROW.replace("2,", "2,[", 1).replace(",PublicTest", "],PublicTest"), "a pixel is"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_row(tmp_path, name):
    row, message = BAD_ROWS[name]
    path = write_csv(tmp_path / "fer2013.csv", [*ROWS[:2], row, *ROWS[3:]])
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read(path)
    assert "fer2013.csv, row 2 (line 4)" in str(caught.value)


BAD_HEADERS = {
    "none": ROWS[0],
    "empty": "",
    "other order": "pixels,emotion,Usage",
    "a column more": HEADER + ",id",
    "a column less": "emotion,pixels",
    "other name": "emotion,pixels,usage",
    "twice the same": "emotion,pixels,pixels",
    "semicolons": "emotion;pixels;Usage",
    "UTF-16": HEADER.encode("utf-16").decode("latin-1"),
    "byte-order mark": "\ufeff" + HEADER,
    "binary": "\0\1\2",
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_bad_header(tmp_path, name):
    path = write_csv(tmp_path / "fer2013.csv", header=BAD_HEADERS[name])
    with pytest.raises(DataError, match=r"fer2013\.csv: the header is .* it must be"):
        read(path)


@pytest.mark.parametrize("missing", ["Training", "PublicTest", "PrivateTest"])
def test_csv_without_a_split(tmp_path, missing):
    rows = [row for row in ROWS if not row.endswith(missing)]
    with pytest.raises(DataError, match="holds no example of the split"):
        read(write_csv(tmp_path / "fer2013.csv", rows))


def test_empty_csv(tmp_path):
    path = tmp_path / "fer2013.csv"
    path.touch()
    with pytest.raises(DataError, match="the header is ''"):
        read(path)
    with pytest.raises(DataError, match="no example"):
        read(write_csv(path, []))


def test_counts_are_the_published_ones(tmp_path):
    path = write_csv(tmp_path / "fer2013.csv")
    with pytest.raises(DataError, match=r"train holds 2 .*28709.*partial=True"):
        sources.read_source(path, partial=False)


# Bad images: (member, content, what the message says)

NAME = "train/angry/Training_8.jpg"
BAD_MEMBERS = {
    "empty": (NAME, b"", "0 bytes"),
    "text": (NAME, b"not an image", "cannot be decoded"),
    "truncated": (NAME, jpeg_of()[:-300], "cannot be decoded"),
    "header only": (NAME, jpeg_of()[:100], "cannot be decoded"),
    "huge": (NAME, jpeg_of() + b"\0" * 2**20, "bytes, allowed are"),
    "PNG inside": (NAME, jpeg_of(kind="png"), "cannot be decoded as JPEG"),
    "47 wide": (NAME, jpeg_of(size=(47, 48)), "47x48 pixels"),
    "49 high": (NAME, jpeg_of(size=(48, 49)), "48x49 pixels"),
    "1000 wide": (NAME, jpeg_of(size=(1000, 1000)), "1000x1000 pixels"),
    "colour": (NAME, jpeg_of(mode="RGB"), "colour mode RGB"),
    "CMYK": (NAME, jpeg_of(mode="CMYK"), "colour mode CMYK"),
    "class unknown": ("train/bored/Training_8.jpg", jpeg_of(), "unknown class 'bored'"),
    "class in capitals": ("train/Angry/Training_8.jpg", jpeg_of(), "unknown class 'Angry'"),
    "no class": ("train/Training_8.jpg", jpeg_of(), "is not <train|test>"),
    "too deep": ("train/angry/more/Training_8.jpg", jpeg_of(), "not"),
    "no number": ("train/angry/Training_.jpg", jpeg_of(), "is not <train|test>"),
    "negative number": ("train/angry/Training_-8.jpg", jpeg_of(), "is not <train|test>"),
    "number endless": (f"train/angry/Training_{'9' * 30}.jpg", jpeg_of(), "is not <train|test>"),
    "usage unknown": ("test/angry/Test_8.jpg", jpeg_of(), "is not <train|test>"),
    "extension": ("train/angry/Training_8.png", jpeg_of(), "is not <train|test>"),
    "line break": ("train/angry/Training_8.jpg\n", jpeg_of(), "is not <train|test>"),
    "stray file": ("train/angry/notes.txt", b"x", "is not <train|test>"),
    "test in train": ("train/angry/PublicTest_8.jpg", jpeg_of(), "PublicTest belongs into test/"),
    "train in test": ("test/angry/Training_8.jpg", jpeg_of(), "Training belongs into train/"),
    "number twice": ("train/angry/Training_007.jpg", jpeg_of(), "have the same number"),
}


@pytest.mark.parametrize("form", ["zip", "folder"])
@pytest.mark.parametrize("name", BAD_MEMBERS)
def test_bad_member(tmp_path, name, form):
    member, data, message = BAD_MEMBERS[name]
    write = write_zip if form == "zip" else write_folder
    path = write(tmp_path / ("archive.zip" if form == "zip" else "archive"), GOOD | {member: data})
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert form == "folder" or repr(member)[1:-1] in str(caught.value)


@pytest.mark.parametrize(
    "name", ["../train/angry/Training_8.jpg", "/etc/passwd", "train/../../x.jpg", "C:\\x.jpg"]
)
def test_zip_leading_out(tmp_path, name):
    with pytest.raises(DataError, match="leads out of the archive"):
        read(write_zip(tmp_path / "archive.zip", GOOD | {name: jpeg_of()}))


@pytest.mark.parametrize("missing", GOOD)
def test_mirror_without_a_split(tmp_path, missing):
    usage = missing.split("/")[-1].split("_")[0]
    members = {name: data for name, data in GOOD.items() if usage not in name}
    with pytest.raises(DataError, match="holds no example of the split"):
        read(write_zip(tmp_path / "archive.zip", members))
    with pytest.raises(DataError, match="holds no example of the split"):
        read(write_folder(tmp_path / "archive", members))


def test_zip_of_something_else(tmp_path):
    with pytest.raises(DataError, match=r"must hold folders train and test.*there are none"):
        read(write_zip(tmp_path / "a.zip", {"x.txt": b"x"}))
    with pytest.raises(DataError, match="there are none"):
        read(write_zip(tmp_path / "b.zip", {}))
    with pytest.raises(DataError, match="there are none"):
        read(write_zip(tmp_path / "c.zip", {"train/": b"", "train/angry/": b"", "test/": b""}))
    with pytest.raises(DataError, match="they are in 'a/', 'b/'"):
        read(write_zip(tmp_path / "d.zip", {f"{r}/{n}": d for r in "ab" for n, d in GOOD.items()}))


def test_folder_of_something_else(tmp_path):
    with pytest.raises(DataError, match="there are none"):
        read(tmp_path)
    (tmp_path / "train" / "angry").mkdir(parents=True)
    with pytest.raises(DataError, match="no example of the split train"):
        read(tmp_path)
    (tmp_path / "train" / "angry" / "Training_1.jpg").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"Training_1\.jpg' is not a file"):
        read(tmp_path)


def test_zip_with_a_name_twice(tmp_path):
    path = write_zip(tmp_path / "archive.zip", GOOD)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train/angry/Training_7.jpg", jpeg_of(5))
    with pytest.raises(DataError, match=r"Training_7\.jpg' is there twice"):
        read(path)


def test_encrypted_zip(tmp_path):
    path = write_zip(tmp_path / "archive.zip", GOOD)
    data = bytearray(path.read_bytes())
    for entry in re.finditer(b"PK\x01\x02", bytes(data)):
        data[entry.start() + 8] |= 1  # the flag "encrypted" in the central directory
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"jpg' is encrypted"):
        read(path)


def test_zip_with_an_unknown_compression(tmp_path):
    path = write_zip(tmp_path / "archive.zip", GOOD)
    data = bytearray(path.read_bytes())
    for entry in re.finditer(b"PK\x01\x02", bytes(data)):
        data[entry.start() + 10 : entry.start() + 12] = struct.pack("<H", 77)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"jpg' cannot be read"):
        read(path)


def test_zip_with_a_flipped_bit(tmp_path):
    path = write_zip(tmp_path / "archive.zip", GOOD, compression=zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[len("train/angry/Training_7.jpg") + 30 + 700] ^= 1  # within the first image
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"Training_7\.jpg' cannot be read .*CRC"):
        read(path)


@pytest.mark.parametrize("form", ["zip", "tar.gz"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated_archive(tmp_path, form, share):
    path = tmp_path / f"archive.{form}"
    if form == "zip":
        write_zip(path, GOOD)
    else:
        data = write_csv(tmp_path / "x.csv").read_bytes()
        write_tar(path, {"fer2013/fer2013.csv": data})
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match="not a whole"):
        read(path)


def test_damaged_archives_never_crash(tmp_path):
    rng = random.Random(0)
    csv = write_csv(tmp_path / "x.csv").read_bytes()
    zip_path = write_zip(tmp_path / "archive.zip", GOOD)
    tar_path = write_tar(tmp_path / "fer2013.tar.gz", {"fer2013.csv": csv})
    for path in (zip_path, tar_path):
        whole = path.read_bytes()
        for _ in range(100):
            data = bytearray(whole)
            for _ in range(rng.choice((1, 1, 3, 20))):
                data[rng.randrange(len(data))] = rng.randrange(256)
            path.write_bytes(data)
            try:
                splits, _ = read(path)
            except DataError:
                continue
            assert sum(len(labels) for _, labels, _ in splits.values()) == 4


BAD_TARS = {
    "not gzip": (b"plain text", "not a whole"),
    "gzip of no tar": (gzip.compress(b"plain text" * 100), "not a whole"),
}


@pytest.mark.parametrize("name", BAD_TARS)
def test_bad_tar(tmp_path, name):
    path = tmp_path / "fer2013.tar.gz"
    path.write_bytes(BAD_TARS[name][0])
    with pytest.raises(DataError, match=BAD_TARS[name][1]):
        read(path)


def test_tar_members(tmp_path):
    path = tmp_path / "fer2013.tar.gz"
    with pytest.raises(DataError, match=r"one fer2013\.csv, but holds 0"):
        read(write_tar(path, {"other.csv": b""}))
    with pytest.raises(DataError, match=r"one fer2013\.csv, but holds 2"):
        read(write_tar(path, {"a/fer2013.csv": b"", "b/fer2013.csv": b""}))
    with pytest.raises(DataError, match="leads out"):
        read(write_tar(path, {"../fer2013.csv": b""}))
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("fer2013.csv")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(DataError, match="is not a file"):
        read(path)


def test_bad_paths(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "nowhere.zip")
    (tmp_path / "fer2013.parquet").touch()
    with pytest.raises(DataError, match=r"ends in \.zip, \.tar\.gz, \.tgz or \.csv"):
        read(tmp_path / "fer2013.parquet")


# Fuzzing


def expected_row(line):
    """An independent reading of a row: (usage, label, pixels) or None where it is not valid."""
    number = "(?:0|[1-9][0-9]?|1[0-9][0-9]|2[0-4][0-9]|25[0-5])"
    pattern = rf" *([0-6]) *, *({number}(?: {number}){{2303}}) *, *(\w+) *\r?\n?"
    match = re.fullmatch(pattern, line.decode("latin-1"), re.ASCII)
    if match is None or match[3] not in ("Training", "PublicTest", "PrivateTest"):
        return None
    return match[3], int(match[1]), bytes(int(p) for p in match[2].split(" "))


def mutate(rng, line):
    data = bytearray(line)
    kind = rng.randrange(6)
    # half of the places near the ends, where label, commas and usage are
    place = rng.randrange(len(data))
    if rng.random() < 0.5:
        place = rng.choice((rng.randrange(4), len(data) - 1 - rng.randrange(14)))
    if kind == 0:
        data[place] = rng.randrange(256)
    elif kind == 1:
        del data[place : place + rng.choice((1, 1, 1, 2, 5))]
    elif kind == 2:
        data[place:place] = rng.choice((b"0", b"1", b" ", b",", b"-", b"\0", b"25", b"\xff", b'"'))
    elif kind == 3:
        data[place] = rng.choice(b"0123456789 ")
    elif kind == 4:
        data = data[:place]
    else:
        other = rng.randrange(len(data))
        data[place], data[other] = data[other], data[place]
    return bytes(data).replace(b"\n", b" ")  # a line break would make two rows of it


def test_10000_fuzzed_rows():
    rng = random.Random(0)
    columns = ("emotion", "pixels", "Usage")
    lines = [row.encode() for row in ROWS]
    outcomes = {True: 0, False: 0}
    for i in range(10_000):
        line = mutate(rng, rng.choice(lines))
        expected = expected_row(line)
        outcomes[expected is not None] += 1
        if expected is None:
            with pytest.raises(DataError, match=rf"^f\.csv, row {i}: "):
                sources._parse_row(f"f.csv, row {i}", line, columns)
        else:
            assert sources._parse_row(f"f.csv, row {i}", line, columns) == expected
    assert min(outcomes.values()) > 1000  # both outcomes are tried often


def test_fuzzed_files_drop_nothing(tmp_path):
    rng = random.Random(1)
    for _ in range(50):
        rows = [row.encode() for row in ROWS] * 2
        if rng.random() < 0.7:
            place = rng.randrange(len(rows))
            rows[place] = mutate(rng, rows[place])
        valid = all(expected_row(row) for row in rows)
        path = write_csv(tmp_path / "fer2013.csv", rows)
        if valid:
            assert sum(len(labels) for _, labels, _ in read(path)[0].values()) == len(rows)
        else:
            with pytest.raises(DataError, match="row"):
                read(path)


# Where a source is looked for


@pytest.fixture
def kaggle(monkeypatch):
    """Replaces kagglehub's download; set `answer` to a path or an exception."""
    import kagglehub

    class Kaggle:
        answer: object = ConnectionError("no network")
        asked = ()

        def download(self, handle):
            self.asked += (handle,)
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

    fake = Kaggle()
    monkeypatch.setattr(kagglehub, "dataset_download", fake.download)
    return fake


def test_manual_folder_comes_first(tmp_path, kaggle):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    csv = write_csv(manual / "fer2013.csv")
    assert sources.find_source(tmp_path) == csv
    archive = write_zip(manual / "archive.zip", GOOD)
    assert sources.find_source(tmp_path) == archive
    assert sources.find_source(tmp_path, "csv") == csv
    assert kaggle.asked == ()


def test_kagglehub_comes_next(tmp_path, kaggle):
    kaggle.answer = str(tmp_path / "cache")
    assert sources.find_source(tmp_path) == tmp_path / "cache"
    assert kaggle.asked == ("msambare/fer2013",)


def test_the_error_names_three_ways_and_the_quickstart(tmp_path, kaggle):
    with pytest.raises(DataError) as caught:
        sources.find_source(tmp_path)
    message = str(caught.value)
    for words in (
        "--config.data.source=PATH",
        str(tmp_path / "downloads" / "manual"),
        "kagglehub",
        "ConnectionError: no network",
        "uv run launch.py --config=experiments/quickstart.py",
    ):
        assert words in message
    with pytest.raises(DataError, match="kagglehub has no source of kind csv"):
        sources.find_source(tmp_path, "csv")
    assert len(kaggle.asked) == 1


# The real thing


@pytest.mark.slow
@pytest.mark.skipif(not ARCHIVE.exists(), reason=f"{ARCHIVE} is not there")
def test_real_archive():
    splits, sha256 = sources.read_source(ARCHIVE, partial=False)
    assert sha256 == "c1c963e34ae883887951ed311b16c31db087297bdca16a3106f846626ff54a4e"
    for split, counts in sources.COUNTS.items():
        images, labels, _ = splits[split]
        assert images.shape == (sum(counts), 48, 48, 1)
        assert tuple(np.bincount(labels, minlength=7)) == counts
    by_split = {s: [i.tobytes() for i in images] for s, (images, _, _) in splits.items()}
    train = set(by_split["train"])
    assert len(by_split["train"]) - len(train) == 1236
    assert len(train | set(by_split["valid"]) | set(by_split["test"])) == 34_034
    assert sum(image in train for image in by_split["valid"]) == 280
    assert sum(image in train for image in by_split["test"]) == 288
