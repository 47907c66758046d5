import csv
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from apps_pictures import (
    crops,
    group,
    photograph,
    predictor,
    read_video,
    scaled,
    set_rate_to_zero,
    set_rotation,
    write_video,
)
from PIL import Image

from fer_jax.apps import cli, explain, run, table, video
from fer_jax.apps.load import load
from fer_jax.apps.run import Options
from fer_jax.apps.table import Table
from fer_jax.config import get_config
from fer_jax.errors import CopyError, FerError, PictureError
from fer_jax.labels import CLASSES
from fer_jax.weights import store


@pytest.fixture
def folder(tmp_path) -> Path:
    """Photographs, and what people have between them."""
    here = tmp_path / "in"
    (here / "sub").mkdir(parents=True)
    (here / ".hidden").mkdir()
    small = Image.fromarray(scaled(photograph(), 0.5))
    small.save(here / "a.jpg", quality=95)
    small.save(here / "sub" / "Mummé 中.png")
    small.save(here / ".hidden" / "b.png")
    small.save(here / "._a.png")
    Image.new("RGB", (300, 200), "black").save(here / "black.png")
    (here / "empty.jpg").touch()
    (here / "notes.txt").write_text("no picture", encoding="utf-8")
    (here / "text.jpg").write_text("hello", encoding="utf-8")
    return here


def do(paths, target: Path | None = None, options: Options | None = None, kind="json", shard=None):
    """Does what the command does after its options are read; returns status and rows."""
    options = options or Options()
    files, root, unread = run.find_files(paths, options.out)
    files = files[shard[0] :: shard[1]] if shard else files
    of = predictor()
    if target is None:
        return run.run(of, files, root, options, None, unread=unread)
    with Table(target, kind, of.classes, of.name) as rows:
        status = run.run(of, files, root, options, rows, unread=unread)
    if kind == "csv":
        with target.open(encoding="utf-8", newline="") as file:
            return status, list(csv.DictReader(file))
    return status, [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]


def test_a_folder_is_done_whatever_lies_in_it(folder, tmp_path, capsys):
    status, rows = do([folder], tmp_path / "t.jsonl")
    assert status == 1
    found = {(Path(row["file"]).name, row["face"]) for row in rows}
    assert found == {("a.jpg", 0), ("black.png", None), ("Mummé 中.png", 0)}
    said = capsys.readouterr().err
    assert "black.png: no face" in said
    assert "empty.jpg is empty" in said
    assert "text.jpg is not a picture" in said
    assert "5 files: 2 with a face, 1 without a face, 2 could not be read" in said


def test_good_pictures_end_with_status_0(folder, tmp_path):
    status, rows = do([folder / "a.jpg", folder / "sub"], tmp_path / "t.jsonl")
    assert status == 0
    assert len(rows) == 2


def test_what_is_missing_is_named_and_the_rest_done(folder, tmp_path, capsys):
    status, rows = do([folder / "missing.jpg", folder / "a.jpg"], tmp_path / "t.jsonl")
    assert status == 1
    assert [row["face"] for row in rows] == [0]
    assert "missing.jpg cannot be read: No such file" in capsys.readouterr().err


def test_the_second_start_does_only_what_is_new(folder, tmp_path, capsys):
    target = tmp_path / "t.jsonl"
    do([folder / "a.jpg", folder / "black.png"], target)
    before = target.read_bytes()
    capsys.readouterr()
    status, rows = do([folder], target)
    assert status == 1
    assert target.read_bytes().startswith(before)
    assert len(rows) == 3
    assert "2 in the table already" in capsys.readouterr().err
    status, _ = do([folder / "a.jpg"], target)
    assert status == 0
    status, _ = do([folder / "black.png"], target)
    assert status == 1  # it still holds no face


def test_a_single_file_that_is_done_is_said_to_be(folder, tmp_path, capsys):
    do([folder / "a.jpg"], tmp_path / "t.jsonl")
    capsys.readouterr()
    do([folder / "a.jpg"], tmp_path / "t.jsonl")
    assert "1 file: 0 with a face, 0 without a face, 1 in the table already" in (
        capsys.readouterr().err
    )


def test_what_is_in_the_table_gets_no_copy_and_that_is_said(folder, tmp_path, capsys):
    paths = [folder / "a.jpg", folder / "sub"]
    do(paths[:1], tmp_path / "t.jsonl")
    do(paths, tmp_path / "t.jsonl", Options(out=tmp_path / "out"))
    assert "1 of 2 files are in the table already and get no copy" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob("out/**/*.jpg")] == ["Mummé 中.png_faces.jpg"]


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_without_detection_files_without_a_face_are_done_again(folder, tmp_path, kind):
    paths = [folder / "a.jpg", folder / "black.png"]
    status, (first, _) = do(paths, tmp_path / "t", kind=kind)
    assert status == 1
    status, rows = do(paths, tmp_path / "t", Options(detect=False), kind)
    assert status == 0
    assert rows[0] == first  # detected, and kept
    assert [(row["file"], int(row["face"])) for row in rows] == [(str(path), 0) for path in paths]
    assert rows[1]["score"] in (None, "")
    assert do(paths, tmp_path / "t", Options(detect=False), kind) == (0, rows)


def test_links_to_folders_are_followed_once(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(folder / "a.jpg", tmp_path / "elsewhere" / "c.jpg")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "sub" / "up").symlink_to(folder)
    files, root, unread = run.find_files([folder], None)
    names = [str(file.relative_to(folder)) for file in files]
    assert names == [
        *("a.jpg", "black.png", "empty.jpg", "text.jpg", "sub/Mummé 中.png", "link/c.jpg")
    ]
    assert (root, unread) == (folder, 0)
    do([folder / "link"], None, Options(out=tmp_path / "out"))
    do([folder / "a.jpg", folder / "link"], None, Options(out=tmp_path / "out"))
    assert (tmp_path / "out" / "c.jpg_faces.jpg").exists()
    assert (tmp_path / "out" / "link" / "c.jpg_faces.jpg").exists()


@pytest.mark.parametrize("paths", [["."], ["link", "sub"], ["sub", "."], [".", "link"]])
def test_a_link_to_a_folder_renames_no_file_and_does_none_twice(tmp_path, paths):
    folder = tmp_path / "in"
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "sub" / "deep" / "x.jpg").touch()
    (folder / "link").symlink_to(folder / "sub")
    (folder / "sub" / "also").symlink_to(folder / "sub" / "deep")
    files, _, _ = run.find_files([folder / path for path in paths], None)
    assert files == [folder / "sub" / "deep" / "x.jpg"]


def test_a_folder_that_cannot_be_listed_is_named(folder, tmp_path, monkeypatch, capsys):
    scandir = os.scandir

    def refused(path):
        if Path(path).name == "sub":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    for path in ("black.png", "empty.jpg", "text.jpg"):
        (folder / path).unlink()
    status, rows = do([folder], tmp_path / "t.jsonl")
    assert (status, len(rows)) == (1, 1)
    assert f"{folder / 'sub'} cannot be read: Permission denied" in capsys.readouterr().err


def test_the_command_line_does_what_its_options_say(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(run, "run", lambda *arguments: asked.append(arguments) or 0)
    names = [f"{i}.png" for i in range(5)]
    for name in names:
        Image.fromarray(crops(1)[0]).save(tmp_path / name)
    out, line = tmp_path / "out", ["predict", str(tmp_path), "--weights=arch02", "--shard=1/2"]
    assert cli.main(line) == 0
    options = ["--no-detect", f"--out={out}", "--explain", "--every=3", "--smooth=0.25"]
    assert cli.main([*line, *options]) == 0
    (_, files, *_), (_, _, _, what, rows, camera, unread) = asked
    assert [Path(file).name for file in files] == names[1::2]
    assert asked[0][3] == Options()
    assert what == Options(False, out, True, 3, 0.25)
    assert (rows, camera, unread) == (None, None, 0)


def test_shards_are_parts_of_the_whole(folder, tmp_path):
    _, whole = do([folder], tmp_path / "whole.jsonl")
    parts = []
    for i in range(2):
        parts += do([folder], tmp_path / f"{i}.jsonl", shard=(i, 2))[1]
    assert sorted(parts, key=str) == sorted(whole, key=str)


def test_the_tables_faces_are_the_predictors(tmp_path):
    path = tmp_path / "group.png"
    Image.fromarray(group()).save(path)
    _, rows = do([path], tmp_path / "t.jsonl")
    faces = predictor().detect_and_predict(group())
    assert [row["face"] for row in rows] == [0, 1, 2]
    for row, face in zip(rows, faces, strict=True):
        found = np.array(list(row["probabilities"].values())).astype(np.float32)
        np.testing.assert_array_equal(found, face.probabilities)
        np.testing.assert_allclose(row["box"], face.box, atol=0.006)


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_crops_without_detection_give_exactly_the_networks_numbers(tmp_path, kind):
    images = crops(33)  # the last is alone in its chunk
    (tmp_path / "in").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "in" / f"{i:02}.png")
    status, rows = do([tmp_path / "in"], tmp_path / "t", Options(detect=False), kind)
    assert status == 0
    if kind == "json":
        found = [list(row["probabilities"].values()) for row in rows]
    else:
        names = [f"probability_{name}" for name in predictor().classes]
        found = [[row[name] for name in names] for row in rows]
    found = np.array(found, float).astype(np.float32)
    np.testing.assert_array_equal(found, predictor().predict(images))


def test_a_small_picture_without_a_face_gets_a_hint(tmp_path, capsys):
    Image.fromarray(np.full((48, 48), 128, np.uint8)).save(tmp_path / "a.png")
    assert do([tmp_path / "a.png"]) == 1
    assert "a.png: no face; if it is a face already" in capsys.readouterr().err


def test_without_a_table_all_seven_are_printed(folder, capsys):
    assert do([folder / "a.jpg"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert "a.jpg face 0: " in printed
    for name in predictor().classes:
        assert name in printed


def test_annotated_copies_mirror_the_folders(folder, tmp_path):
    out = folder / "out"
    for _ in range(2):  # the second start does not take its own copies for pictures
        shutil.rmtree(out, ignore_errors=True)
        do([folder], None, Options(out=out))
        do([folder], None, Options(out=out))
        names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
        assert names == {*("a.jpg_faces.jpg", "black.png_faces.jpg", "sub/Mummé 中.png_faces.jpg")}
    copy = np.asarray(Image.open(out / "a.jpg_faces.jpg")).astype(int)
    original = scaled(photograph(), 0.5).astype(int)
    assert copy.shape == tuple(np.array(original.shape) * (2, 2, 1))  # small ones are enlarged
    changed = np.abs(copy[::2, ::2] - original).max(axis=2) > 60
    assert 0.02 < changed.mean() < 0.4


def test_a_linked_picture_has_its_copy_under_its_own_name(folder, tmp_path):
    (folder / "sub" / "link.jpg").symlink_to(folder / "a.jpg")
    elsewhere = tmp_path / "other.jpg"
    (folder / "sub" / "far.jpg").symlink_to(shutil.copy(folder / "a.jpg", elsewhere))
    assert do([folder / "sub"], None, Options(out=tmp_path / "out")) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"{name}_faces.jpg" for name in ("Mummé 中.png", "link.jpg", "far.jpg")}


@pytest.mark.parametrize("inside", ["out", "."])
def test_copies_are_not_looked_at_when_they_are_named(folder, capsys, inside):
    """As `in/* --out=in/out` names them, and `in --out=in` and `in/* --out=in` find them."""
    for name in ("black.png", "empty.jpg", "text.jpg"):
        (folder / name).unlink()
    out = folder / inside
    do([folder], None, Options(out=out))
    before = sorted(folder.rglob("*"))
    for paths in ([folder], sorted(folder.glob("[!.]*"))):
        capsys.readouterr()
        do(paths, None, Options(out=out))
        assert sorted(folder.rglob("*")) == before
        assert f"2 annotated copies in {out} are left out" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["party_faces.jpg", "camera0_faces.jpg", "party_faces.mp4"])
def test_a_file_that_is_called_much_like_a_copy_is_looked_at(tmp_path, name):
    original = tmp_path / name
    original.touch()
    for paths in ([tmp_path], [original]):
        assert run.find_files(paths, tmp_path)[0] == [original]


def test_a_picture_that_is_called_like_a_copy_is_looked_at_elsewhere(folder, tmp_path):
    shutil.copy(folder / "a.jpg", folder / "a.jpg_faces.jpg")
    files, _, _ = run.find_files([folder], tmp_path / "out")
    assert folder / "a.jpg_faces.jpg" in files


def test_copies_of_all_kinds_are_left_out(tmp_path, capsys):
    made = [
        *("A.JPG_faces.jpg", "a.jpg_faces.jpg_faces.jpg", "b.mov_faces.mp4", "b.ts_faces.avi"),
        *("camera0_faces.mp4", "camera12_3_faces.avi"),
    ]
    for name in (*made, "a.jpg"):
        (tmp_path / name).touch()
    assert run.find_files([tmp_path], tmp_path)[0] == [tmp_path / "a.jpg"]
    assert f"6 annotated copies in {tmp_path} are left out" in capsys.readouterr().err
    run.find_files([tmp_path / made[0]], tmp_path)
    assert f"1 annotated copy in {tmp_path} is left out" in capsys.readouterr().err


def _long(ending: str) -> str:
    """A name that a file may have, but its copy's may not while it is written."""
    return "x" * (241 - len(ending)) + ending


def test_a_copy_that_cannot_be_written_is_counted_and_the_rest_done(folder, tmp_path, capsys):
    shutil.copy(folder / "a.jpg", folder / "sub" / _long(".jpg"))
    (folder / "sub" / "z.jpg").symlink_to(folder / "a.jpg")
    options = Options(out=tmp_path / "out")
    status, rows = do([folder / "sub"], tmp_path / "t.jsonl", options)
    assert status == 1
    assert [Path(row["file"]).name for row in rows] == ["Mummé 中.png", "z.jpg"]
    said = capsys.readouterr().err
    assert "3 files: 2 with a face, 0 without a face, 1 could not be written" in said
    assert f"{_long('.jpg')}_faces.jpg: File name too long" in said
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_full_disk_ends_the_job(folder, tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(FerError, match=r"cannot write .*a.jpg_faces.jpg: No space left") as error:
        do([folder], tmp_path / "t.jsonl", Options(out=tmp_path / "out"))
    assert not isinstance(error.value, CopyError)


def test_a_folder_of_copies_that_cannot_be_is_named_first(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(type(predictor()), "predict_pictures", None)
    (tmp_path / "file").touch()
    with pytest.raises(FerError, match="file: a file stands where a folder should"):
        do([folder], None, Options(out=tmp_path / "file"))


def test_a_name_that_is_no_text_is_printed(folder, capsys):
    name = os.fsdecode(b"\xff.jpg")
    shutil.copy(folder / "a.jpg", folder / name)
    assert do([folder / name]) == 0
    assert "/\\udcff.jpg face 0: " in capsys.readouterr().out


def test_explanations_colour_the_face(folder, tmp_path):
    copies = []
    for explained in (False, True):
        out = tmp_path / str(explained)
        do([folder / "a.jpg"], None, Options(out=out, explain=explained))
        copies.append(np.asarray(Image.open(out / "a.jpg_faces.jpg")).astype(int))
    changed = np.argwhere(np.abs(copies[0] - copies[1]).max(axis=2) > 40)
    middle = changed.mean(axis=0)  # about the face's, in the picture at its full size
    np.testing.assert_allclose(middle, (230, 265), atol=40)


# Videos


@pytest.fixture
def clip(tmp_path) -> Path:
    picture = scaled(photograph(), 0.5)
    frames = [np.roll(picture, 4 * i, axis=1) for i in range(8)] + [np.zeros_like(picture)] * 4
    return write_video(tmp_path / "clip.mp4", frames, 8)


def test_a_row_for_each_frame_and_face(clip, tmp_path):
    status, rows = do([clip], tmp_path / "t.jsonl")
    assert status == 0
    assert [row["frame"] for row in rows] == list(range(12))
    assert [row["face"] for row in rows] == [0] * 8 + [None] * 4
    np.testing.assert_allclose([row["time_s"] for row in rows], np.arange(12) / 8, atol=1e-3)
    lefts = np.array([row["box"][0] for row in rows[:8]])
    np.testing.assert_allclose(np.diff(lefts), 4, atol=4)
    assert do([clip], tmp_path / "t.jsonl") == (0, rows)  # nothing is done twice


def test_every_nth_frame_gives_the_same_rows(clip, tmp_path):
    _, rows = do([clip], tmp_path / "all.jsonl")
    _, third = do([clip], tmp_path / "third.jsonl", Options(every=3))
    assert third == rows[::3]


def test_the_table_is_not_smoothed_and_the_copy_has_every_frame(clip, tmp_path):
    _, raw = do([clip], tmp_path / "raw.jsonl", Options(smooth_s=0))
    options = Options(smooth_s=5, out=tmp_path / "out", every=2)
    _, rows = do([clip], tmp_path / "t.jsonl", options)
    for row, expected in zip(rows, raw[::2], strict=True):
        assert row == expected
    (copy,) = (tmp_path / "out").iterdir()
    assert copy.name == "clip.mp4_faces.mp4"
    frames, rate = read_video(copy)
    assert (len(frames), rate, frames[0].shape) == (12, 8, (300, 256, 3))
    drawn = np.abs(frames[3].astype(int) - read_video(clip)[0][3]).max(axis=2) > 60
    assert drawn.mean() > 0.02


def test_a_truncated_video_is_done_as_far_as_it_goes(tmp_path, capsys):
    picture = scaled(photograph(), 0.4)[:, :205]
    path = write_video(tmp_path / "a.avi", [picture] * 20, 10, "MJPG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    status, rows = do([path], tmp_path / "t.jsonl")
    assert status == 1
    assert 5 < len(rows) < 15
    assert f"{20 - len(rows)} of 20 frames could not be decoded" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "codec", "rate", "width"),
    [
        ("a.avi", "MJPG", 10, 97),
        ("a.avi", "MJPG", 0, 97),
        ("a.mp4", "mp4v", 1000, 96),
        ("a.mov", "mp4v", 24000 / 1001, 96),
        ("a.webm", "VP80", 25, 96),
    ],
)
def test_a_copy_has_the_size_rate_and_frames_of_its_clip(tmp_path, name, codec, rate, width):
    picture = scaled(photograph(), 0.25)[:64, :width]
    path = write_video(tmp_path / name, [picture] * 9, rate or 10, codec)
    if not rate:
        set_rate_to_zero(path)
    with video.Video(path) as source:
        expected = source.rate
    assert rate in (0, 1000) or expected == pytest.approx(rate, rel=1e-4)
    do([path], None, Options(detect=False, out=tmp_path / "out"))
    (copy,) = (tmp_path / "out").iterdir()
    frames, found = read_video(copy)
    assert [frame.shape for frame in frames] == [(64, width, 3)] * 9
    assert found == pytest.approx(expected, rel=1e-3)


def test_a_copy_that_cannot_be_is_refused_before_the_work(tmp_path, monkeypatch, capsys):
    wide = write_video(tmp_path / "wide.avi", [np.zeros((16, 8192, 3), np.uint8)] * 3, 10, "MJPG")
    monkeypatch.setattr(type(predictor()), "predict_pictures", None)
    status, rows = do([wide], tmp_path / "t.jsonl", Options(out=tmp_path / "out"))
    assert (status, rows) == (1, [])
    said = capsys.readouterr().err
    assert "wide.avi_faces.mp4 with 8192x16 pixels and 10 frames per second; is its" in said
    assert list((tmp_path / "out").iterdir()) == []


def test_a_video_whose_copy_cannot_be_written_is_counted_so(clip, tmp_path, capsys):
    paths = [Path(shutil.copy(clip, tmp_path / _long(".mp4"))), clip]
    status, rows = do(paths, tmp_path / "t.jsonl", Options(out=tmp_path / "out", every=12))
    assert (status, [row["file"] for row in rows]) == (1, [str(clip)])
    said = capsys.readouterr().err
    assert f"{_long('.mp4')}_faces.mp4 with 256x300 pixels" in said
    assert "2 files: 1 with a face, 0 without a face, 1 could not be written" in said


def test_a_frame_that_is_looked_at_is_explained_once_as_it_is_labelled(clip, tmp_path, monkeypatch):
    asked = []

    def saliency(predict, image, label):
        assert label == len(asked)
        asked.append(image)
        return np.zeros((48, 48))

    def smooth(self, time_s, boxes, probabilities):
        return [np.eye(7)[len(asked)] for _ in boxes]

    monkeypatch.setattr(explain, "saliency", saliency)
    monkeypatch.setattr(video.Smoother, "__call__", smooth)
    do([clip], None, Options(out=tmp_path, every=3, explain=True))
    assert len(asked) == 3  # frames 0, 3 and 6; there is no face in 9


class _Recorded(video.Video):
    """A camera that sees a file, of 8 frames a second, and gives 4."""

    file: Path

    def _open(self, source):
        return super()._open(self.file)


def test_recordings_of_a_camera_are_kept_and_play_as_fast_as_it_went(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(_Recorded, "file", clip, raising=False)
    monkeypatch.setattr(video, "Video", _Recorded)
    out = tmp_path / "out"
    for _ in range(3):
        clock = itertools.count()
        monkeypatch.setattr(video, "time", SimpleNamespace(monotonic=lambda c=clock: next(c) / 4))
        with pytest.raises(PictureError, match="camera 0 stopped after 12 frames"):
            run.run(predictor(), [], Path(), Options(out=out), None, camera=0)
    names = ("camera0_2_faces.mp4", "camera0_3_faces.mp4", "camera0_faces.mp4")
    assert tuple(sorted(path.name for path in out.iterdir())) == names
    frames, rate = read_video(out / "camera0_faces.mp4")
    assert rate == 8
    assert len(frames) == 23  # 12 that are 0.25 s apart


def test_a_camera_ends_with_ctrl_c_and_keeps_what_it_saw(clip, tmp_path, monkeypatch):
    def interrupted(self, *arguments):
        for frame in frames(self, *arguments):
            if frame.index == 4:
                signal.raise_signal(signal.SIGINT)
            yield frame

    frames = _Recorded.frames
    monkeypatch.setattr(_Recorded, "file", clip, raising=False)
    monkeypatch.setattr(_Recorded, "frames", interrupted)
    monkeypatch.setattr(video, "Video", _Recorded)
    of, path = predictor(), tmp_path / "t.jsonl"
    with Table(path, "json", of.classes, of.name) as rows:
        assert run.run(of, [], Path(), Options(out=tmp_path / "out"), rows, camera=0) == 0
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row["frame"] for row in found] == [0, 1, 2, 3, 4]
    copied, _ = read_video(tmp_path / "out" / "camera0_faces.mp4")
    assert copied


def test_the_copy_of_a_rotated_clip_is_upright(clip, tmp_path):
    frames, _ = read_video(clip)
    turned = write_video(tmp_path / "turned.mp4", [np.rot90(f) for f in frames], 8)
    set_rotation(turned, 90)
    status, rows = do([turned], tmp_path / "t.jsonl", Options(out=tmp_path / "out"))
    assert status == 0
    _, expected = do([clip], tmp_path / "expected.jsonl")
    assert [row["face"] for row in rows] == [row["face"] for row in expected]
    copied, _ = read_video(tmp_path / "out" / "turned.mp4_faces.mp4")
    assert copied[0].shape == frames[0].shape


def test_a_frame_gives_what_it_gives_as_a_picture(clip, tmp_path):
    _, rows = do([clip], tmp_path / "clip.jsonl")
    Image.fromarray(read_video(clip)[0][3]).save(tmp_path / "frame.png")
    _, alone = do([tmp_path / "frame.png"], tmp_path / "frame.jsonl")
    same = [row for row in rows if row["frame"] == 3]
    assert [row["box"] for row in same] == [row["box"] for row in alone]
    for row, other in zip(same, alone, strict=True):
        found, expected = (list(x["probabilities"].values()) for x in (row, other))
        np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["photo.jpg", "clip.mp4"])
def test_a_newcomer_needs_one_command_and_no_data_set(clip, tmp_path, clean_environment, name):
    """As README has it, with the shipped weights."""
    Image.fromarray(photograph()).save(tmp_path / "photo.jpg")
    bare = clean_environment | {"TFDS_DATA_DIR": str(tmp_path / "none"), "HOME": str(tmp_path)}
    done = subprocess.run(
        [Path(sys.executable).with_name("fer-jax"), "predict", name, "--out=annotated"],
        cwd=tmp_path,
        env=bare,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert any(word in done.stdout for word in CLASSES)
    assert [path.stem for path in (tmp_path / "annotated").iterdir()] == [f"{name}_faces"]


def test_a_clip_without_a_table_prints_a_summary(clip, capsys):
    assert do([clip]) == 0
    printed = capsys.readouterr().out
    assert "12 frames looked at, 8 with a face; mean of the first: " in printed


def test_frames_share_batches_and_few_are_held(clip, monkeypatch, tmp_path):
    sizes = []
    of = predictor()
    predict_pictures = type(of).predict_pictures

    def counted(self, sources, detect=True):
        sizes.append(len(sources))
        return predict_pictures(self, sources, detect)

    monkeypatch.setattr(type(of), "predict_pictures", counted)
    monkeypatch.setattr(run, "CHUNK_PIXELS", 5 * 300 * 256)
    do([clip], tmp_path / "t.jsonl")
    assert sizes == [5, 5, 2]


def test_no_camera_is_one_line(tmp_path):
    with pytest.raises(PictureError, match="camera 7 cannot be opened"):
        run.run(predictor(), [], Path(), Options(), None, camera=7)


# The command


@pytest.fixture
def stored(tmp_path) -> Path:
    """A folder of weights."""
    path = tmp_path / "some_weights"
    store.save(path, predictor()._variables, get_config().model, CLASSES)
    return path


def test_the_command_predicts_with_weights_from_a_folder(stored, folder, tmp_path, capsys):
    target = tmp_path / "t.csv"
    arguments = ["predict", str(folder / "a.jpg"), f"--weights={stored}", f"--csv={target}"]
    assert cli.main(arguments) == 0
    with target.open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    (face,) = load(stored).detect_and_predict(folder / "a.jpg")
    assert np.float32(row["probability_Anger"]) == face.probabilities[0]
    assert row["weights"] == f"some_weights@{load(stored).fingerprint}"
    assert cli.main(["predict", "--camera=7", f"--weights={stored}"]) == 2
    assert "fer-jax: camera 7 cannot be opened" in capsys.readouterr().err


def test_a_table_of_other_weights_of_the_same_name_is_refused(stored, folder, tmp_path, capsys):
    arguments = ["predict", str(folder / "a.jpg"), f"--weights={stored}", f"--json={tmp_path}/t"]
    assert cli.main(arguments) == 0
    before = (tmp_path / "t").read_bytes()
    store.save(stored, predictor(seed=1)._variables, get_config().model, CLASSES)
    assert cli.main(arguments) == 2
    assert "was made with the weights 'some_weights@" in capsys.readouterr().err
    assert (tmp_path / "t").read_bytes() == before


def test_a_table_of_averages_over_views_is_one_of_its_own(stored, tmp_path, capsys):
    Image.fromarray(crops(1)[0]).save(tmp_path / "a.png")
    arguments = ["predict", str(tmp_path / "a.png"), "--no-detect", f"--weights={stored}"]
    arguments.append(f"--json={tmp_path}/t")
    assert cli.main([*arguments, "--views=flip"]) == 0
    row = json.loads((tmp_path / "t").read_text(encoding="utf-8"))
    of = load(stored, "flip")
    ((face,),) = of.predict_pictures([crops(1)[0]], detect=False)
    assert [np.float32(p) for p in row["probabilities"].values()] == list(face.probabilities)
    assert row["weights"] == f"some_weights@{of.fingerprint}+flip"
    assert cli.main(arguments) == 2
    assert "+flip', these are 'some_weights@" in capsys.readouterr().err


def test_a_table_goes_on_with_its_weights_named_by_their_file(stored, folder, tmp_path, capsys):
    arguments = ["predict", str(folder / "a.jpg"), f"--json={tmp_path}/t"]
    assert cli.main([*arguments, f"--weights={stored}"]) == 0
    assert cli.main([*arguments, f"--weights={stored / store.ARRAYS}"]) == 0
    assert "1 in the table already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "a.jpg", "--out=~/x"],
        ["predict", "a.jpg", "--json=~/x"],
        ["predict", "a.jpg", "--csv=~/x"],
        ["export", "arch02", "--out=~/x"],
        ["pack", "run", "--out=~/x"],
        ["demo", "--build=~/x"],
        ["score", "a.csv", "--csv=~/x"],
        ["score", "a.csv", "--json=~/x"],
        ["score", "a.csv", "--picture=~/x"],
    ],
)
def test_a_tilde_behind_an_equals_sign_is_home(arguments, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tmp_path / "x" in vars(cli._parser().parse_args(arguments)).values()


_PRINT = "print('a.jpg face 0')"
_FAIL = "raise cli.FerError('full')"


@pytest.mark.parametrize(
    ("broken", "does", "said"),
    [
        ("stdout", _PRINT, b""),
        ("stdout", f"{_PRINT}; {_FAIL}", b"fer-jax: full\n"),
        ("stdout", f"{_PRINT}; sys.exit()", b""),  # as --help does
        ("stderr", "print('b.jpg: no face', file=sys.stderr)", b""),
        ("stderr", "logging.getLogger('fer_jax').error('careful')", b""),
        ("stderr", _FAIL, b""),
    ],
)
def test_a_reader_that_goes_away_is_no_success(broken, does, said):
    program = (
        "import logging, sys\n"
        "from fer_jax.apps import cli\n"
        "def predict(options):\n"
        f"    {does}\n"
        "    return 0\n"
        "cli._predict = predict\n"
        "sys.exit(cli.main(['predict', 'a.jpg']))\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {broken: writer}
    done = subprocess.run([sys.executable, "-c", program], **streams, env=buffered)
    os.close(writer)
    assert done.returncode == 128 + signal.SIGPIPE
    assert (done.stdout or b"") + (done.stderr or b"") == said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name pictures, folders or videos, or a camera"),
        (["a.jpg", "--every=0"], "'0' is not a whole number from 1"),
        (["a.jpg", "--camera=x"], "'x' is not a whole number from 0"),
        (["a.jpg", "--shard=2/2"], "'2/2' is not i/n"),
        (["a.jpg", "--smooth=-1"], "'-1' is not a number of seconds"),
        (["a.jpg", "--nothing"], "unrecognized arguments: --nothing"),
    ],
)
def test_mistakes_in_the_command_line_are_named(arguments, said, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["predict", *arguments])
    assert end.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.jpg", "--json=a", "--csv=b"], "--json and --csv"),
        (["a.jpg", "--explain"], "--out=DIR"),
        (["a.jpg", "--weights=no_such"], "there are no weights 'no_such'"),
    ],
)
def test_what_cannot_be_begun_is_one_line(arguments, said, capsys):
    assert cli.main(["predict", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_an_empty_folder_is_named(tmp_path, capsys):
    assert cli.main(["predict", str(tmp_path)]) == 2
    assert f"no picture or video in {tmp_path}" in capsys.readouterr().err


@pytest.mark.slow
def test_crops_need_no_opencv_and_the_others_say_so(stored, tmp_path, clean_environment):
    Image.fromarray(crops(1)[0]).save(tmp_path / "a.png")
    program = (
        "import sys; sys.modules['cv2'] = None\n"
        "from fer_jax.apps import cli\n"
        "for more in (['--no-detect'], []):\n"
        "    print(cli.main(['predict', *sys.argv[1:], *more]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.png"), f"--weights={stored}"],
        capture_output=True,
        text=True,
        env=clean_environment,
    )
    assert done.stdout.splitlines()[1:] == ["0", "2"], done.stderr
    assert "pip install 'fer-jax[predict]'" in done.stderr


def test_help_imports_nothing_heavy():
    program = (
        "import sys\n"
        "from fer_jax.apps import cli\n"
        "try: cli.main(['predict', '--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('jax', 'numpy', 'cv2', 'PIL') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.endswith("[]\n")
    assert "exit status: 0 if" in done.stdout


def test_names_in_the_table_are_one_line():
    assert table.name_of(Path("a\nb/c.jpg")) == "a\\nb/c.jpg"
