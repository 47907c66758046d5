import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from apps_pictures import (
    photograph,
    read_video,
    scaled,
    set_durations,
    set_rate_to_zero,
    set_rotation,
    slow_down,
    write_video,
)

from fer_jax.apps import video
from fer_jax.errors import CopyError, FerError, PictureError


def clip(count: int = 12, height: int = 64, width: int = 96) -> list[np.ndarray]:
    """Frames that differ: a photograph that moves to the right."""
    picture = scaled(photograph(), 0.25)[:height, :width]
    return [np.roll(picture, 3 * i, axis=1) for i in range(count)]


def frames_of(path, every=1, decode_all=False):
    with video.Video(path) as source:
        return list(source.frames(every, decode_all)), source


def test_frames_come_in_order_with_their_times(tmp_path):
    path = write_video(tmp_path / "Mummé 中.mp4", clip(), 25)
    frames, source = frames_of(path)
    assert (source.count, source.rate, source.size, source.lost) == (12, 25, (96, 64), 0)
    assert [frame.index for frame in frames] == list(range(12))
    np.testing.assert_allclose([frame.time_s for frame in frames], np.arange(12) / 25, atol=1e-3)
    for frame, expected in zip(frames, clip(), strict=True):
        assert np.abs(frame.picture.astype(int) - expected).mean() < 12  # the codec loses some


@pytest.mark.parametrize(("name", "codec"), [("a.mov", "mp4v"), ("a.webm", "VP80")])
def test_other_containers_are_read(tmp_path, name, codec):
    frames, source = frames_of(write_video(tmp_path / name, clip(), 25, codec))
    assert (len(frames), source.lost) == (12, 0)
    np.testing.assert_allclose([frame.time_s for frame in frames], np.arange(12) / 25, atol=2e-3)


def test_colours_keep_their_channels(tmp_path):
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = 250
    (frame, *_), _ = frames_of(write_video(tmp_path / "a.avi", [red] * 3, codec="MJPG"))
    assert frame.picture[..., 0].mean() > 230
    assert frame.picture[..., 1:].mean() < 20


@pytest.mark.parametrize("decode_all", [False, True])
def test_every_third_frame(tmp_path, decode_all):
    frames, _ = frames_of(write_video(tmp_path / "a.mp4", clip()), 3, decode_all)
    assert [f.index for f in frames] == list(range(12))
    assert [f.index for f in frames if f.picture is not None] == (
        list(range(12)) if decode_all else [0, 3, 6, 9]
    )


@pytest.mark.parametrize(("degrees", "quarters"), [(90, 3), (180, 2), (270, 1)])
def test_rotated_clips_come_upright(tmp_path, degrees, quarters):
    """Told to turn clockwise, as a phone does, and turned for real."""
    told = write_video(tmp_path / "told.mp4", clip())
    set_rotation(told, degrees)
    frames, source = frames_of(told)
    assert source.size == ((64, 96) if degrees % 180 else (96, 64))
    for frame, upright in zip(frames, clip(), strict=True):
        expected = np.rot90(upright, quarters)
        assert frame.picture.shape == expected.shape
        assert np.abs(frame.picture.astype(int) - expected).mean() < 12


def test_a_varying_rate_has_the_containers_times(tmp_path):
    path = write_video(tmp_path / "a.mp4", clip(), 10)
    before, _ = frames_of(path)
    ticks = round(0.1 * _timescale(path))
    set_durations(path, [(4, ticks // 2), (4, 3 * ticks // 2), (4, ticks)])
    frames, _ = frames_of(path)
    expected = np.cumsum([0, *[0.05] * 4, *[0.15] * 4, *[0.1] * 3])
    np.testing.assert_allclose([f.time_s for f in frames], expected, atol=2e-3)
    assert len(before) == len(frames)


def _timescale(path) -> int:
    data = path.read_bytes()
    start = data.index(b"mdhd") + 4 + 12
    return int.from_bytes(data[start : start + 4], "big")


def test_an_impossible_rate_is_not_believed(tmp_path):
    path = write_video(tmp_path / "a.mp4", clip(), 1000)
    _, source = frames_of(path)
    assert source.rate == video.FALLBACK_RATE


def test_a_rate_of_zero_in_the_header(tmp_path):
    path = write_video(tmp_path / "a.avi", clip(height=65, width=97), 10, "MJPG")
    set_rate_to_zero(path)
    frames, source = frames_of(path)
    assert len(frames) == 12
    assert 1 / 60 <= source.rate <= 240
    times = [f.time_s for f in frames]
    assert (np.diff(times) > 0).all()


def test_a_truncated_video_gives_what_is_left_and_counts_the_rest(tmp_path):
    path = write_video(tmp_path / "a.avi", clip(20, 65, 97), 10, "MJPG")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    frames, source = frames_of(path)
    assert 5 < len(frames) < 15
    assert source.lost == 20 - len(frames)


def test_frames_that_cannot_be_decoded_are_left_out_and_counted(tmp_path):
    with video.Video(write_video(tmp_path / "a.mp4", clip())) as source:
        capture = source._capture
        answers = itertools.chain([True, True, False, True, False], itertools.repeat(True))

        def retrieve():
            there, picture = capture.retrieve()
            return (there, picture) if next(answers) else (False, None)

        names = ("grab", "get", "release")
        source._capture = SimpleNamespace(
            retrieve=retrieve, **{name: getattr(capture, name) for name in names}
        )
        frames = list(source.frames(1, decode_all=False))
    assert [frame.index for frame in frames] == [0, 1, 3, 5, 6, 7, 8, 9, 10, 11]
    assert source.lost == 2


def damage(path, count: int) -> None:
    """Overwrites so many bytes in the middle."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + count] = bytes(count)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "mp4v"),
        ("a.mov", "MJPG"),
        ("a.avi", "XVID"),
        ("a.mkv", "mp4v"),
        ("a.webm", "VP80"),
        ("a.ts", "MPG2"),
    ],
)
def test_frames_that_a_damaged_stretch_takes_are_counted(tmp_path, name, codec):
    path = write_video(tmp_path / name, clip(48), 25, codec)
    damage(path, path.stat().st_size // 8)
    frames, source = frames_of(path)
    assert 2 <= source.lost == 48 - len(frames) <= 20
    for frame, place in ((frames[2], 2), (frames[-1], 47)):  # before the damage and behind it
        assert np.abs(frame.picture.astype(int) - clip(48)[place]).mean() < 20
    if name != "a.avi":  # whose frames have no time stamps but their order
        assert frames[-1].time_s == pytest.approx(47 / 25, abs=2e-3)


def test_damaged_frames_do_not_end_a_video_and_keep_their_indices(tmp_path):
    path = write_video(tmp_path / "a.mp4", clip(48), 25)
    damage(path, path.stat().st_size // 8)
    frames, source = frames_of(path)
    indices = [frame.index for frame in frames]
    (gap,) = [i for i, step in enumerate(np.diff(indices)) if step > 1]
    assert indices[gap + 1] - indices[gap] == source.lost + 1
    assert indices[-1] == 47
    np.testing.assert_allclose([f.time_s for f in frames], np.array(indices) / 25, atol=1e-3)


def test_what_a_decoder_conceals_cannot_be_counted(tmp_path):
    path = write_video(tmp_path / "a.avi", clip(20, 65, 97), 10, "MJPG")
    damage(path, 400)
    frames, source = frames_of(path)
    assert (frames[-1].index, source.lost) == (19, 0)
    for index in (2, 19):
        found = frames[index].picture.astype(int)
        assert np.abs(found - clip(20, 65, 97)[index]).mean() < 20


def test_a_varying_rate_is_no_damage(tmp_path):
    """Matroska tells how long it is, not how many frames it holds."""
    path = write_video(tmp_path / "a.mkv", clip(40, 96, 128), 25, "MJPG")
    slow_down(path, 4)
    frames, source = frames_of(path)
    assert (source.count, len(frames), source.lost) == (10 + 30 * 4, 40, 0)
    assert frames[-1].time_s == pytest.approx(0.4 + 29 * 4 / 25)


def test_frames_that_a_header_counts_are_missed_at_a_varying_rate_too(tmp_path):
    path = write_video(tmp_path / "a.mp4", clip(40), 10)
    ticks = round(0.1 * _timescale(path))
    set_durations(path, [(20, 3 * ticks), (20, ticks)])
    damage(path, path.stat().st_size // 8)
    frames, source = frames_of(path)
    assert source.lost == 40 - len(frames) > 1


def test_a_video_without_a_frame_that_can_be_decoded_is_named(tmp_path):
    path = write_video(tmp_path / "a.ts", clip(), 25, "MPG2")
    path.write_bytes(b"".join(b"G" + bytes(187) for _ in range(len(path.read_bytes()) // 188)))
    assert "a.ts" in _refusal(path)


def _refusal(path) -> str:
    with pytest.raises(PictureError) as error, video.Video(path):
        pass
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_no_video_is_named(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("hello", encoding="utf-8")
    whole = write_video(tmp_path / "cut.mp4", clip())
    whole.write_bytes(whole.read_bytes()[:3000])
    assert "it is empty" in _refusal(tmp_path / "empty.mp4")
    assert "text.mp4 is not a video" in _refusal(tmp_path / "text.mp4")
    assert "or it is cut" in _refusal(whole)
    assert "does not exist" in _refusal(tmp_path / "missing.mp4")
    assert "is a folder" in _refusal(tmp_path)
    assert "does not exist or cannot be read" in _refusal(tmp_path / ("x" * 300 + ".mp4"))


@pytest.mark.parametrize("index", [7, 99])
def test_a_camera_that_is_not_there_is_named(index):
    message = _refusal(index)
    assert f"camera {index} cannot be opened" in message
    assert "privacy" in message


@pytest.mark.parametrize(
    ("height", "width", "suffix"), [(64, 96, "mp4"), (64, 97, "avi"), (65, 96, "avi")]
)
@pytest.mark.parametrize("rate", [1 / 60, 1, 7.3456, 24000 / 1001, 60, 119.8712, 239.999])
def test_what_is_written_has_size_rate_and_frames(tmp_path, height, width, suffix, rate):
    frames = clip(7, height, width)
    with video.Writer(tmp_path / "new" / "out", rate, (width, height)) as writer:
        for frame in frames:
            writer.write(frame)
    (path,) = (tmp_path / "new").iterdir()
    assert path.name == f"out.{suffix}"
    found, found_rate = read_video(path)
    assert len(found) == 7
    np.testing.assert_allclose(found_rate, rate, rtol=2e-4 if rate >= 1 else 0.03)
    for one, expected in zip(found, frames, strict=True):
        assert one.shape == expected.shape
        assert np.abs(one.astype(int) - expected).mean() < 12


@pytest.mark.parametrize(
    ("times", "count"),
    [
        (np.arange(8) / 10, 8),
        (np.arange(8) / 10 + np.tile([0, 0.04], 4), 8),  # not even
        (np.arange(8) / 2.5, 29),  # a quarter of the rate that the header says
        (np.arange(8) / 40, 2),
        ([0, 0.1, 2, 2.1], 22),
    ],
)
def test_with_times_a_video_takes_as_long_as_what_it_shows(tmp_path, times, count):
    with video.Writer(tmp_path / "out", 10, (96, 64)) as writer:
        for frame, time_s in zip(clip(len(times)), times, strict=True):
            writer.write(frame, time_s)
    found, _ = read_video(tmp_path / "out.mp4")
    assert abs(len(found) - count) <= 1
    assert abs(len(found) - 1 - times[-1] * 10) <= 1
    assert np.abs(found[0].astype(int) - clip(1)[0]).mean() < 12


def test_what_is_shown_until_the_next_frame_is_the_one_before(tmp_path):
    dark, bright = np.zeros((64, 96, 3), np.uint8), np.full((64, 96, 3), 250, np.uint8)
    with video.Writer(tmp_path / "out", 10, (96, 64)) as writer:
        writer.write(dark, 0)
        writer.write(bright, 0.5)
    found, _ = read_video(tmp_path / "out.mp4")
    assert [frame.mean() > 125 for frame in found] == [False] * 5 + [True]


def test_a_failure_leaves_no_half_video(tmp_path):
    def fail():
        with video.Writer(tmp_path / "out", 10, (96, 64)) as writer:
            writer.write(clip(1)[0])
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_without_a_frame_nothing_is_written(tmp_path):
    with video.Writer(tmp_path / "out", 10, (96, 64)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CopyError, match=r"cannot write .*out.mp4: a file stands where a folder"):
        video.Writer(tmp_path / "file" / "out", 10, (96, 64))


@pytest.mark.parametrize(
    ("rate", "size", "said"),
    [
        (10, (8192, 64), r"out.mp4 with 8192x64 pixels and 10 frames per second"),
        (1e6, (96, 64), r"out.mp4 with 96x64 pixels and 1e\+06 frames per second"),
    ],
)
def test_what_no_codec_writes_is_named_before_any_frame(tmp_path, rate, size, said):
    with pytest.raises(CopyError, match=rf"cannot write .*{said}"):
        video.Writer(tmp_path / "out", rate, size)
    assert list(tmp_path.iterdir()) == []


def test_what_could_not_be_written_whole_is_named_and_gone(tmp_path):
    def fail():
        with video.Writer(tmp_path / "out", 10, (96, 64)) as writer:
            writer.write(clip(1)[0])
            writer.write(clip(1, 32)[0])  # OpenCV passes over another size

    with pytest.raises(CopyError, match=r"out.mp4 cannot be written whole"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_ends_more_than_one_copy(tmp_path, monkeypatch):
    def fail():
        with video.Writer(tmp_path / "out", 10, (96, 64)) as writer:
            writer.write(clip(1)[0])
            monkeypatch.setattr(writer, "_frames", lambda: 0)
            monkeypatch.setattr(video.shutil, "disk_usage", lambda _: SimpleNamespace(free=4096))

    with pytest.raises(FerError, match=r"cannot write .*out.mp4: No space left") as error:
        fail()
    assert not isinstance(error.value, CopyError | PictureError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("width", [96, 97])
def test_a_name_that_is_too_long_is_one_copy_that_cannot_be_written(tmp_path, width):
    with pytest.raises(CopyError, match="cannot write"):
        video.Writer(tmp_path / ("x" * 247), 10, (width, 64))


# Smoothing

LEFT, RIGHT = np.array([0.0, 0, 50, 60]), np.array([200.0, 0, 50, 60])


def test_labels_of_a_still_face_are_means_over_the_window():
    smooth = video.Smoother(0.45)  # five frames
    noise = np.random.default_rng(0).dirichlet(np.ones(7), 30)
    for i, new in enumerate(noise):
        (shown,) = smooth(i / 10, [LEFT + 0.3 * (i % 2)], [new])
        np.testing.assert_allclose(shown, noise[max(0, i - 4) : i + 1].mean(axis=0))


def test_a_window_of_zero_is_off():
    smooth = video.Smoother(0)
    for i, new in enumerate(np.random.default_rng(0).dirichlet(np.ones(7), 5)):
        np.testing.assert_array_equal(smooth(i / 10, [LEFT], [new])[0], new)


def test_each_face_is_followed_by_its_box():
    smooth = video.Smoother(10)
    ones, zeros = np.ones(7), np.zeros(7)
    smooth(0, [LEFT, RIGHT], [ones, zeros])
    right, left = smooth(0.1, [RIGHT + 5, LEFT + 5], [zeros, ones])
    np.testing.assert_array_equal((left, right), (ones, zeros))
    (new,) = smooth(0.2, [np.array([90.0, 0, 50, 60])], [zeros])
    np.testing.assert_array_equal(new, zeros)
    assert smooth(0.3, [], []) == []
