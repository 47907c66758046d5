"""Every bad input is refused by name; every good one gives the same examples."""

import bz2
import contextlib
import gzip
import hashlib
import io
import lzma
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fer_jax.data import files, kaggle, sources
from fer_jax.data.find import find_source
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
    source = sources.recognise(path)
    return sources.read_source(source, partial=True), source.sha256


def sha256_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextlib.contextmanager
def little_memory():
    """Checks that Python takes less than 16 MB more than before."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


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
    assert sources.recognise(path).kind == "csv"
    splits, sha256 = read(path)
    check_csv_splits(splits)
    assert sha256 == (sha256_of(path) if path.is_file() else read(path)[1])


def test_csv_needs_no_last_newline(tmp_path):
    path = write_csv(tmp_path / "fer2013.csv")
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    check_csv_splits(read(path)[0])


def test_icml_csv(tmp_path):
    rows = [", ".join(np.array(row.split(","))[[0, 2, 1]]) for row in ROWS]
    path = write_csv(tmp_path / "icml_face_data.csv", rows, "emotion, Usage, pixels")
    assert sources.recognise(path).kind == "icml_csv"
    check_csv_splits(read(path)[0])


def test_tar_of_the_competition(tmp_path):
    data = write_csv(tmp_path / "x.csv").read_bytes()
    members = {
        "fer2013/README": b"read me",
        "fer2013/fer2013.csv": data,
        "fer2013/fer2013.bib": b"",
    }
    path = write_tar(tmp_path / "fer2013.tar.gz", members)
    assert sources.recognise(path).kind == "csv"
    splits, sha256 = read(path)
    check_csv_splits(splits)
    assert sha256 == (sha256_of(path) if path.is_file() else read(path)[1])


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
    assert sources.recognise(path).kind == "jpeg"
    splits, sha256 = read(path)
    check_jpeg_splits(splits)
    assert sha256 == (sha256_of(path) if path.is_file() else read(path)[1])


@pytest.mark.parametrize("nested", [False, True])
def test_folder(tmp_path, nested):
    write_folder(tmp_path / "fer2013", GOOD | {"train/.DS_Store": b"x", "README": b"x"})
    path = tmp_path if nested else tmp_path / "fer2013"
    assert sources.recognise(path).kind == "jpeg"
    splits, sha256 = read(path)
    check_jpeg_splits(splits)
    assert sha256 == (sha256_of(path) if path.is_file() else read(path)[1])


def test_sha256_of_a_folder_sees_every_change(tmp_path):
    digests = {sources.recognise(write_folder(tmp_path / "a", GOOD)).sha256}
    digests.add(sources.recognise(write_folder(tmp_path / "b", GOOD)).sha256)
    assert len(digests) == 1
    renamed = {n.replace("Training_7", "Training_8"): d for n, d in GOOD.items()}
    digests.add(sources.recognise(write_folder(tmp_path / "c", renamed)).sha256)
    changed = GOOD | {"test/fear/PrivateTest_2.jpg": jpeg_of(9)}
    digests.add(sources.recognise(write_folder(tmp_path / "d", changed)).sha256)
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
    "label half quoted": ('"2' + ROW[1:], "a wrong quotation mark"),
    "label quoted and more": ('"2"2' + ROW[1:], "a wrong quotation mark"),
    "quote in the middle": ('2"' + ROW[1:], "emotion is '2\"'"),
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
    "pixel huge": ("2," + " ".join(["9" * 9] * 2304) + ",PublicTest", "a pixel is '9"),
    "pixel word": (ROW.replace(" ", " x", 1), "a pixel is 'x"),
    "arabic digits": ("2," + " ".join(["٣"] * 2304) + ",PublicTest", "a pixel is"),
    "leading zero": ("2," + " ".join(["07"] * 2304) + ",PublicTest", "a pixel is '07'"),
    "two blanks": (ROW.replace(" ", "  ", 1), "2305 pixels"),
    "tab": (ROW.replace(" ", "\t", 1), "2303 pixels"),
    "semicolons": (ROW.replace(",", ";"), "1 fields"),
    "one field quoted": ('"2,' + ROW[2:] + '"', "1 fields"),
    "a row of 200 kB": (ROW.replace(" ", " " * 200_000, 1), "over 32768 bytes without"),
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
    "none": (ROWS[0], "has no header; write emotion,pixels,Usage"),
    "empty": ("", "has no header; write"),
    "a column more": (HEADER + ",id", "no header of FER2013"),
    "a column less": ("emotion,pixels", "the competition's train.csv, which does not say"),
    "other name": ("emotion,pixels,usages", "no header of FER2013"),
    "twice the same": ("emotion,pixels,pixels", "no header of FER2013"),
    "semicolons": ("emotion;pixels;Usage", "has fields parted by ';'"),
    "tabs": ("emotion\tpixels\tUsage", "has fields parted by"),
    "UTF-16": (HEADER.encode("utf-16").decode("latin-1"), "no header of FER2013"),
    "binary": ("\0\1\2", "no header of FER2013"),
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_bad_header(tmp_path, name):
    header, message = BAD_HEADERS[name]
    path = write_csv(tmp_path / "fer2013.csv", header=header)
    with pytest.raises(DataError, match=re.escape(str(path)) + ".*" + re.escape(message)) as caught:
        read(path)
    assert "\n" not in str(caught.value)


GOOD_HEADERS = {  # header, kind, how a row is written
    "as published": (HEADER, "csv", "{e},{p},{u}"),
    "byte-order mark": ("\ufeff" + HEADER, "csv", "{e},{p},{u}"),
    "byte-order mark, quoted": ('\ufeff"emotion","pixels","Usage"', "csv", '"{e}","{p}","{u}"'),
    "quoted as R does": ('"emotion","pixels","Usage"', "csv", '{e},"{p}","{u}"'),
    "quoted with R's row names": ('"","emotion","pixels","Usage"', "csv", '"7",{e},"{p}","{u}"'),
    "pandas' index": (",emotion,pixels,Usage", "csv", "7,{e},{p},{u}"),
    "pandas' index again": ("Unnamed: 0,emotion,pixels,Usage", "csv", "7,{e},{p},{u}"),
    "other order": ("Usage,pixels,emotion", "csv", "{u},{p},{e}"),
    "lower case": ("emotion,pixels,usage", "csv", "{e},{p},{u}"),
    "icml": ("emotion, Usage, pixels", "icml_csv", "{e}, {u}, {p}"),
    "icml, no blanks": ("emotion,Usage,pixels", "icml_csv", "{e},{u},{p}"),
    "icml, quoted": ('"emotion", "Usage", "pixels"', "icml_csv", '"{e}", "{u}", "{p}"'),
}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("tail", ["", "\n", "\r\n\r\n", "  \n"])
@pytest.mark.parametrize("name", GOOD_HEADERS)
def test_good_header(tmp_path, name, tail, end):
    header, kind, form = GOOD_HEADERS[name]
    fields = [row.split(",") for row in ROWS]
    rows = [form.format(e=e, p=p, u=u) for e, p, u in fields]
    path = write_csv(tmp_path / "fer2013.csv", rows, header, end)
    path.write_bytes(path.read_bytes() + tail.encode())
    assert sources.recognise(path).kind == kind
    check_csv_splits(read(path)[0])


def test_a_row_of_200_mb_is_refused_unread(tmp_path):
    path = write_csv(tmp_path / "fer2013.csv")
    with path.open("ab") as file:
        file.write(b"0,1")
        file.truncate(200_000_000)  # zeros, which take no room on the disk
    with (
        little_memory(),
        pytest.raises(DataError, match=r"\(line 6\): over 32768 bytes without a line's end"),
    ):
        read(path)


@pytest.mark.parametrize("missing", ["Training", "PublicTest", "PrivateTest"])
def test_csv_without_a_split(tmp_path, missing):
    rows = [row for row in ROWS if not row.endswith(missing)]
    with pytest.raises(DataError, match="holds no example of the split"):
        read(write_csv(tmp_path / "fer2013.csv", rows))


def test_empty_csv(tmp_path):
    path = tmp_path / "fer2013.csv"
    path.touch()
    with pytest.raises(DataError, match=r"is empty \(0 bytes\)"):
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
    "no class": ("train/Training_8.jpg", jpeg_of(), "is not <train|test>"),
    "too deep": ("train/angry/more/Training_8.jpg", jpeg_of(), "not"),
    "no number": ("train/angry/Training_.jpg", jpeg_of(), "is not <train|test>"),
    "negative number": ("train/angry/Training_-8.jpg", jpeg_of(), "is not <train|test>"),
    "number endless": (f"train/angry/Training_{'9' * 30}.jpg", jpeg_of(), "is not <train|test>"),
    "usage unknown": ("test/angry/Test_8.jpg", jpeg_of(), "is not <train|test>"),
    "extension": ("train/angry/Training_8.png", jpeg_of(), "is not <train|test>"),
    "line break": ("train/angry/Training_8.jpg\n", jpeg_of(), "is not <train|test>"),
    "valid of the wrong usage": ("valid/angry/PrivateTest_8.jpg", jpeg_of(), "belongs into test/"),
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


def test_two_roots(tmp_path):
    twice = {f"{root}/{name}": data for root in "ab" for name, data in GOOD.items()}
    for path in (write_zip(tmp_path / "d.zip", twice), write_folder(tmp_path / "d", twice)):
        with pytest.raises(DataError, match="below both 'a/' and 'b/'; keep one"):
            read(path)


def test_folder_with_a_broken_link(tmp_path):
    write_folder(tmp_path, GOOD)
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
    with pytest.raises(DataError, match=r"not a whole|is empty|no header"):
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


def test_tar_members(tmp_path):
    path = tmp_path / "fer2013.tar.gz"
    with pytest.raises(DataError, match="leads out"):
        read(write_tar(path, {"../fer2013.csv": b""}))
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("fer2013.csv")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(DataError, match="is not a file"):
        read(path)


# Fuzzing


def expected_row(line):
    """An independent reading of a row: (usage, label, pixels) or None where it is not valid."""
    number = "(?:0|[1-9][0-9]?|1[0-9][0-9]|2[0-4][0-9]|25[0-5])"
    contents = ("[0-6]", rf"{number}(?: {number}){{2303}}", r"\w+")
    fields = ",".join(rf' *(?:({content}) *|" *({content}) *")' for content in contents)
    match = re.fullmatch(rf"{fields}\r?\n?", line.decode("latin-1"), re.ASCII)
    if match is None:
        return None
    label, pixels, usage = (match[i] or match[i + 1] for i in (1, 3, 5))
    if usage not in ("Training", "PublicTest", "PrivateTest"):
        return None
    return usage, int(label), bytes(int(p) for p in pixels.split(" "))


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


@pytest.mark.slow
def test_10000_fuzzed_rows():
    rng = random.Random(0)
    columns = ("emotion", "pixels", "usage")
    lines = [row.encode() for row in ROWS]
    lines += [b",".join(b'"%s"' % field for field in line.split(b",")) for line in lines]
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
        if not rows[-1].strip():  # an empty line at the end is none
            continue
        if valid:
            assert sum(len(labels) for _, labels, _ in read(path)[0].values()) == len(rows)
        else:
            with pytest.raises(DataError, match="row"):
                read(path)


# Recognised by what they hold


def csv_bytes(header=HEADER, rows=ROWS):
    return "\n".join([header, *rows, ""]).encode()


def icml_bytes():
    rows = [", ".join(np.array(row.split(","))[[0, 2, 1]]) for row in ROWS]
    return csv_bytes("emotion, Usage, pixels", rows)


def zip_bytes(members, prefix=""):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(prefix + name, data)
    return buffer.getvalue()


def tar_bytes(members, mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


COMPETITION = {
    "fer2013/README": b"read me",
    "fer2013/fer2013.csv": csv_bytes(),
    "fer2013/fer2013.bib": b"@article{}",
}
NO_USAGE = csv_bytes("emotion,pixels", [row.rsplit(",", 1)[0] for row in ROWS])
NO_LABEL = csv_bytes("pixels", [row.split(",")[1] for row in ROWS])
DOWNLOADED = {  # what the competition's page gives
    "example_submission.csv": b"emotion\n0\n",
    "fer2013.tar.gz": tar_bytes(COMPETITION, "w:gz"),
    "icml_face_data.csv": icml_bytes(),
    "test.csv": NO_LABEL,
    "train.csv": NO_USAGE,
}
LITTER = {
    "train/angry/Thumbs.db": b"x",
    "train/angry/desktop.ini": b"x",
    "train/.DS_Store": b"x",
    "__MACOSX/train/angry/._Training_7.jpg": b"x",
    "README.md": b"x",
}
SHOUTED = {
    name.replace(".jpg", ".JPG").replace("train/a", "train/A"): d for name, d in GOOD.items()
}
VALID_APART = {name.replace("test/sad", "valid/sad"): data for name, data in GOOD.items()}

GOOD_FILES = {  # name, content, kind
    "csv without ending": ("fer2013", csv_bytes(), "csv"),
    "csv of another name": ("data.txt", csv_bytes(), "csv"),
    "csv named .zip": ("archive.zip", csv_bytes(), "csv"),
    "csv.gz": ("fer2013.csv.gz", gzip.compress(csv_bytes()), "csv"),
    "csv.bz2": ("fer2013.csv.bz2", bz2.compress(csv_bytes()), "csv"),
    "csv.xz": ("fer2013.csv.xz", lzma.compress(csv_bytes()), "csv"),
    "csv.zip": ("fer2013.csv.zip", zip_bytes({"fer2013.csv": csv_bytes()}), "csv"),
    "icml csv": ("a.csv", icml_bytes(), "icml_csv"),
    "icml csv in a zip": ("a.zip", zip_bytes({"icml_face_data.csv": icml_bytes()}), "icml_csv"),
    "archive.zip of a CSV": ("archive.zip", zip_bytes({"fer2013.csv": csv_bytes()}), "csv"),
    "archive.zip of a folder": ("archive.zip", zip_bytes(COMPETITION), "csv"),
    "tar.gz": ("fer2013.tar.gz", tar_bytes(COMPETITION, "w:gz"), "csv"),
    "tar.bz2": ("fer2013.tar.bz2", tar_bytes(COMPETITION, "w:bz2"), "csv"),
    "tar.xz": ("fer2013.tar.xz", tar_bytes(COMPETITION, "w:xz"), "csv"),
    "tar": ("fer2013.tar", tar_bytes(COMPETITION), "csv"),
    "tar without ending": ("fer2013", tar_bytes(COMPETITION), "csv"),
    "tar.gz named .csv": ("fer2013.csv", tar_bytes(COMPETITION, "w:gz"), "csv"),
    "tar of ./": ("fer2013.tar", tar_bytes({f"./{n}": d for n, d in COMPETITION.items()}), "csv"),
    "TAR.GZ": ("FER2013.TAR.GZ", tar_bytes(COMPETITION, "w:gz"), "csv"),
    "competition's zip": ("challenges.zip", zip_bytes(DOWNLOADED), "csv"),
    "mirror": ("archive.zip", zip_bytes(GOOD), "jpeg"),
    "ARCHIVE.ZIP": ("ARCHIVE.ZIP", zip_bytes(GOOD), "jpeg"),
    "zip named .csv": ("fer2013.csv", zip_bytes(GOOD), "jpeg"),
    "mirror deeper": ("archive.zip", zip_bytes(GOOD, "a/b/"), "jpeg"),
    "mirror in a tar": ("archive.tar", tar_bytes(GOOD), "jpeg"),
    "mirror in a tar.gz": ("archive.tgz", tar_bytes(GOOD, "w:gz"), "jpeg"),
    "zip in a zip": ("a.zip", zip_bytes({"archive.zip": zip_bytes(GOOD)}), "jpeg"),
    "zip in a tar.gz": ("a.tgz", tar_bytes({"archive.zip": zip_bytes(GOOD)}, "w:gz"), "jpeg"),
    "backslashes": (
        "archive.zip",
        zip_bytes({name.replace("/", "\\"): data for name, data in GOOD.items()}),
        "jpeg",
    ),
    "capitals": ("archive.zip", zip_bytes(SHOUTED), "jpeg"),
    "valid apart": ("archive.zip", zip_bytes(VALID_APART), "jpeg"),
    "litter": ("archive.zip", zip_bytes(GOOD | LITTER), "jpeg"),
    "mirror beside a CSV": ("archive.zip", zip_bytes(GOOD | {"a.csv": csv_bytes()}), "jpeg"),
    "a bad one beside": ("a.zip", zip_bytes({"a.zip": b"PK\3\4", "f.csv": csv_bytes()}), "csv"),
}


def check_any(path, kind):
    source = sources.recognise(path)
    assert source.kind == kind
    splits = sources.read_source(source, partial=True)
    (check_jpeg_splits if kind == "jpeg" else check_csv_splits)(splits)
    return source


@pytest.mark.parametrize("name", GOOD_FILES)
def test_good_file(tmp_path, name):
    file, data, kind = GOOD_FILES[name]
    path = tmp_path / file
    path.write_bytes(data)
    source = check_any(path, kind)
    assert source.path == path
    assert source.sha256 == hashlib.sha256(data).hexdigest()


GOOD_FOLDERS = {  # members, kind, what of it is the source
    "left by tar xzf": (COMPETITION, "csv", "fer2013/fer2013.csv"),
    "one lower": ({n.split("/")[1]: d for n, d in COMPETITION.items()}, "csv", "fer2013.csv"),
    "of the competition": (DOWNLOADED, "csv", "fer2013.tar.gz"),
    "with archive.zip": ({"archive.zip": zip_bytes(GOOD)}, "jpeg", "archive.zip"),
    "with a bad file": (
        {"archive.zip": b"<html>", "a/fer2013.csv": csv_bytes(), "b.csv": b"PK\3\4"},
        "csv",
        "a/fer2013.csv",
    ),
    "mirror": (GOOD | LITTER, "jpeg", ""),
    "mirror deeper": ({f"a/b/{n}": d for n, d in GOOD.items()}, "jpeg", ""),
    "mirror in capitals": (SHOUTED, "jpeg", ""),
    "mirror and archive.zip": (GOOD | {"archive.zip": zip_bytes(GOOD)}, "jpeg", ""),
    "icml": (
        {"icml_face_data.csv": icml_bytes(), "train.csv": NO_USAGE},
        "icml_csv",
        "icml_face_data.csv",
    ),
}


@pytest.mark.parametrize("name", GOOD_FOLDERS)
def test_good_folder(tmp_path, name):
    members, kind, inside = GOOD_FOLDERS[name]
    folder = write_folder(tmp_path / "source", members)
    assert check_any(folder, kind).path == folder / inside
    assert check_any(Path(f"{folder}/"), kind).path == folder / inside


PNG = jpeg_of(kind="png")
FOREIGN_FILES = {  # content, what it is, what to do
    "empty": (b"", "is empty (0 bytes)", "download it again"),
    "zeros": (bytes(5000), "holds only zeros", "download it again"),
    "web page": (b"\n<!DOCTYPE html><html>", "is a web page", "where you are logged in"),
    "web page without doctype": (b"<html><body>", "is a web page", "where you are logged in"),
    "server's JSON": (b'{"code":403}', "is JSON", "download it again"),
    "server's XML": (b'<?xml version="1.0"?><Error>', "is XML", "download it again"),
    "Git LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "is a Git LFS pointer",
        "git lfs pull",
    ),
    "git-annex pointer": (b"/annex/objects/SHA256E-s1--0.zip\n", "git-annex", "git annex get"),
    "Parquet": (b"PAR1" + bytes(99), "is a Parquet file", "save it as CSV"),
    "Arrow": (b"ARROW1\0\0", "is an Arrow file", "save it as CSV"),
    "npy": (b"\x93NUMPY\1\0", "is a NumPy file", "save it as CSV"),
    "npz": (zip_bytes({"x.npy": b"\x93NUMPY\1\0"}), "'x.npy' is a NumPy file", "save it as CSV"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "is an HDF5 file", "save it as CSV"),
    "pickle": (b"\x80\x04\x95", "is a Python pickle", "save it as CSV"),
    "RAR": (b"Rar!\x1a\7\0", "is a RAR archive", "unpack it"),
    "7z": (b"7z\xbc\xaf\x27\x1c", "is a 7-Zip archive", "unpack it"),
    "zstd": (b"\x28\xb5\x2f\xfd", "is a Zstandard archive", "unpack it"),
    "one picture": (jpeg_of(), "is one JPEG picture", "archive.zip"),
    "UTF-16": (csv_bytes().decode().encode("utf-16"), "is text in UTF-16", "save it as UTF-8"),
    "train.csv": (NO_USAGE, "the competition's train.csv", "take icml_face_data.csv"),
    "test.csv": (NO_LABEL, "test.csv, which has no labels", "take icml_face_data.csv"),
    "a submission": (b"emotion\n0\n1\n", "labels without pixels", "take icml_face_data.csv"),
    "train.csv in a zip": (
        zip_bytes({"train.csv": NO_USAGE}),
        "is the competition's",
        "icml_face_data",
    ),
    "FER+": (
        b"Usage,Image name,neutral,happiness,surprise\nTraining,fer0000000.png,4,0,0\n",
        "fer2013new.csv of FER+, votes without pixels",
        "archive.zip",
    ),
    "another table": (b"a,b\n1,2\n", "its first line is 'a,b'", "archive.zip"),
    "cut zip": (zip_bytes(GOOD)[:-40], "not a whole zip file", "download it again"),
    "cut gzip": (gzip.compress(csv_bytes())[:15], "not a whole gzip file", "download it again"),
    "zip of nothing": (zip_bytes({}), "holds no FER2013, but nothing", "archive.zip"),
    "zip of something": (zip_bytes({"x.txt": b"x"}), "holds no FER2013, but 'x.txt'", "archive"),
    "tar of something": (tar_bytes({"x.txt": b"x"}), "holds no FER2013, but 'x.txt'", "archive"),
}


@pytest.mark.parametrize("name", FOREIGN_FILES)
@pytest.mark.parametrize("file", ["archive.zip", "fer2013.csv", "fer2013"])
def test_foreign_file(tmp_path, name, file):
    data, what, advice = FOREIGN_FILES[name]
    path = tmp_path / file
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        sources.recognise(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert what in message
    assert advice in message.split(what)[1]
    assert "\n" not in message
    assert len(message) < 600


FOREIGN_TREES = {
    "PNG mirror": ("train/angry/im0.png", "has lost the numbers"),
    "PNG mirror lower": ("archive/test/sad/im12.png", "has lost the numbers"),
    "FER+": ("data/FER2013Train/fer0000000.png", "the pictures of FER+"),
    "RAF-DB": ("DATASET/train/1/train_00001_aligned.jpg", "is RAF-DB"),
    "RAF-DB as published": ("basic/EmoLabel/list_patition_label.txt", "is RAF-DB"),
    "AffectNet": ("val_set/annotations/0_exp.npy", "is AffectNet"),
    "AffectNet on Kaggle": ("Train/anger/image0000006.jpg", "is AffectNet"),
    "CK+": ("CK+48/anger/S010_004_00000017.png", "is CK+"),
    "JAFFE": ("jaffe/KA.AN1.39.tiff", "is JAFFE"),
    "KDEF": ("KDEF/AF01/AF01ANS.JPG", "is KDEF"),
    "other pictures": ("train/angry/0001.png", "without FER2013's names"),
    "a mirror renamed": ("train/angry/1.jpg", "without FER2013's names"),
    "nothing of all": ("notes/todo.txt", "holds no FER2013, but 'notes/todo.txt'"),
}


@pytest.mark.parametrize("form", ["zip", "folder", "tar"])
@pytest.mark.parametrize("name", FOREIGN_TREES)
def test_foreign_tree(tmp_path, name, form):
    member, what = FOREIGN_TREES[name]
    data = b"some text" if member.endswith(".txt") else PNG
    path = tmp_path / "source"
    if form == "folder":
        write_folder(path, {member: data})
    else:
        path.write_bytes((zip_bytes if form == "zip" else tar_bytes)({member: data}))
    with pytest.raises(DataError, match=f"{path} .*{re.escape(what)}") as caught:
        sources.recognise(path)
    assert "msambare/fer2013" in str(caught.value)
    assert "--config.data.name=folder" in str(caught.value)


def test_an_archive_in_too_many_others(tmp_path):
    data = csv_bytes()
    for _ in range(6):
        data = gzip.compress(data)
    (tmp_path / "a.gz").write_bytes(data)
    with pytest.raises(DataError, match="in too many others; unpack it"):
        sources.recognise(tmp_path / "a.gz")


@pytest.mark.parametrize("form", ["gzip", "zip", "tar.gz", "zip in zip"])
def test_bombs_are_refused_in_constant_memory(tmp_path, form, monkeypatch):
    monkeypatch.setattr(files, "MAX_BYTES", 2**22)
    rows = csv_bytes() + (b" " * 1000 + b"\n") * 2**14
    data = {
        "gzip": lambda: gzip.compress(rows),
        "zip": lambda: zip_bytes({"fer2013.csv": rows}),
        "tar.gz": lambda: tar_bytes({"fer2013.csv": rows}, "w:gz"),
        "zip in zip": lambda: zip_bytes({"a.zip": zip_bytes(GOOD) + bytes(2**24)}),
    }[form]()
    path = tmp_path / "bomb"
    path.write_bytes(data)
    with little_memory(), pytest.raises(DataError, match="unpacks to over 4194304 bytes"):
        read(path)


def test_what_the_system_refuses_is_one_line(tmp_path, monkeypatch):
    path = write_csv(tmp_path / "fer2013.csv")
    with pytest.raises(DataError, match=r"cannot read .*: File name too long"):
        sources.recognise(tmp_path / ("x" * 300))

    def refuse(*args):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(files.io, "FileIO", refuse)
    with pytest.raises(DataError, match=r"cannot read .*fer2013\.csv: Permission denied"):
        sources.recognise(path)


# Where a source is looked for


@pytest.fixture(autouse=True)
def kaggle_folder(tmp_path, monkeypatch):
    """An empty cache of kagglehub, and a server that refuses every connection."""
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kagglehub"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    return tmp_path / "kagglehub" / "datasets" / "msambare" / "fer2013"


@pytest.fixture
def manual(tmp_path):
    folder = tmp_path / "data" / "downloads" / "manual"
    folder.mkdir(parents=True)
    return folder


def test_manual_folder_comes_first(tmp_path, manual):
    csv = write_csv(manual / "fer2013.csv")
    assert find_source(tmp_path / "data").path == csv
    archive = write_zip(manual / "archive.zip", GOOD)
    assert find_source(tmp_path / "data").path == archive
    assert find_source(tmp_path / "data", "csv").path == csv


MANUAL = {  # what lies in the manual folder, and what of it is taken
    "a folder with the archive": ({"fer2013/archive.zip": zip_bytes(GOOD)}, "fer2013/archive.zip"),
    "a folder with the CSV": ({"fer2013/fer2013.csv": csv_bytes()}, "fer2013/fer2013.csv"),
    "the mirror": ({f"fer2013/{n}": d for n, d in GOOD.items()}, "fer2013"),
    "the mirror as archive": ({f"archive/{n}": d for n, d in GOOD.items()}, "archive"),
    "in capitals": ({"FER2013.TAR.GZ": DOWNLOADED["fer2013.tar.gz"]}, "FER2013.TAR.GZ"),
    "a second download": ({"archive (1).zip": zip_bytes(GOOD)}, "archive (1).zip"),
    "the competition's": (
        {"facial-expression-recognition.zip": zip_bytes(DOWNLOADED)},
        "facial-expression-recognition.zip",
    ),
    "a bad one first": (
        {"archive.zip": b"<html>", "fer2013/x.txt": b"x", "fer2013.csv": csv_bytes()},
        "fer2013.csv",
    ),
    "another data set's beside": (
        {"archive.zip": zip_bytes({"cats/1.png": PNG}), "fer2013/archive.zip": zip_bytes(GOOD)},
        "fer2013/archive.zip",
    ),
}


@pytest.mark.parametrize("name", MANUAL)
def test_manual_folder(tmp_path, manual, name):
    members, taken = MANUAL[name]
    write_folder(manual, members)
    assert find_source(tmp_path / "data").path == manual / taken


def test_the_error_names_three_ways_and_the_quickstart(tmp_path, manual):
    write_folder(manual, {"archive.zip": b"<html>"})
    with pytest.raises(DataError) as caught:
        find_source(tmp_path / "data")
    message = str(caught.value)
    for words in (
        "--config.data.source=PATH",
        str(manual),
        "kagglehub",
        "It said: ProxyError",
        f"What is there is not FER2013: {manual / 'archive.zip'} is a web page",
        "uv run launch.py --config=experiments/quickstart.py",
    ):
        assert words in message
    with pytest.raises(DataError, match="kagglehub has no source of kind csv"):
        find_source(tmp_path / "data", "csv")


@pytest.mark.parametrize("where", [".", "versions/1"])
def test_what_kagglehub_has_is_used_without_a_network(tmp_path, kaggle_folder, where):
    write_folder_deep(kaggle_folder / where, GOOD)
    (kaggle_folder / "1.complete").touch()
    assert find_source(tmp_path).path == kaggle_folder / where


def test_the_newest_complete_version_is_used(tmp_path, kaggle_folder):
    for version in (2, 9, 10, 11):
        write_folder_deep(kaggle_folder / "versions" / str(version), GOOD)
        if version < 11:  # 11 is still being unpacked
            (kaggle_folder / f"{version}.complete").touch()
    assert find_source(tmp_path).path == kaggle_folder / "versions" / "10"


def test_a_cut_copy_is_named_with_its_repair(tmp_path, kaggle_folder):
    folder = kaggle_folder / "versions" / "1"
    (kaggle_folder / "1.complete").parent.mkdir(parents=True)
    (kaggle_folder / "1.complete").touch()
    repair = re.escape(f"It is a cut download: remove {folder}, and the next run fetches it again")
    write_folder_deep(folder, GOOD)
    with pytest.raises(DataError, match=repair) as caught:
        sources.read_source(find_source(tmp_path), partial=False)
    assert "partial" not in str(caught.value)
    write_folder_deep(folder, GOOD | {"train/angry/Training_9.jpg": b""})
    with pytest.raises(DataError, match=f"has 0 bytes.*{repair}"):
        sources.read_source(find_source(tmp_path), partial=True)
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(DataError, match=repair):
        find_source(tmp_path)


def write_folder_deep(path, members):
    path.mkdir(parents=True, exist_ok=True)
    return write_folder(path, members)


@pytest.fixture
def silent_server():
    """Accepts connections and never answers; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow
def test_a_server_that_never_answers(tmp_path, monkeypatch, silent_server, caplog):
    monkeypatch.setenv("HTTPS_PROXY", silent_server)
    monkeypatch.setattr(kaggle, "_SILENCE_S", 0.5)
    start = time.perf_counter()
    with (
        caplog.at_level("INFO", "fer_jax"),
        pytest.raises(DataError, match=r"It said: .*[Tt]imed? ?out"),
    ):
        find_source(tmp_path)
    assert time.perf_counter() - start < 10
    assert "Fetching FER2013 (60 MB) from kaggle.com" in caplog.text


def test_ctrl_c_while_fetching_ends_it_at_once(tmp_path, silent_server):
    code = """
import logging, signal, sys
from types import SimpleNamespace
from fer_jax.data import load_dataset
logging.basicConfig(level=logging.INFO, format="%(message)s")
signal.signal(signal.SIGINT, lambda *_: None)  # as a run does, which saves first
try:
    load_dataset(SimpleNamespace(name="fer2013", source=None, data_dir=sys.argv[1], partial=False))
except KeyboardInterrupt:
    print("interrupted")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "data")],
        env=os.environ | {"HTTPS_PROXY": silent_server},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    assert "Fetching" in process.stderr.readline()
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (0, "interrupted\n", "")


# The real thing


@pytest.mark.slow
@pytest.mark.skipif(not ARCHIVE.exists(), reason=f"{ARCHIVE} is not there")
def test_real_archive():
    source = sources.recognise(ARCHIVE)
    splits = sources.read_source(source, partial=False)
    assert source.sha256 == "c1c963e34ae883887951ed311b16c31db087297bdca16a3106f846626ff54a4e"
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
