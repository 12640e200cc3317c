"""Draw and encode one clip of the `motion` data set: the same ingredients in every class, told apart only by time."""

import io
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8

MOTION_CLASSES: tuple[str, ...] = (
    "moves right",
    "moves left",
    "moves down",
    "moves up",
    "approaches",
    "recedes",
    "turns clockwise",
    "turns counter-clockwise",
    "pillar passes in front to the right, behind to the left",
    "pillar passes behind to the right, in front to the left",
    "blinks faster and faster",
    "blinks slower and slower",
    "camera pans, then stops",
    "camera rests, then starts",
)
FLIP_LABELS: tuple[int, ...] = (1, 0, 2, 3, 4, 5, 7, 6, 9, 8, 10, 11, 12, 13)

_CHANNELS = 5  # x, y, log size, angle, orbit of the pillar: class 2c sweeps channel c upwards, class 2c + 1 downwards


def _sweep(rng: np.random.Generator, frames: int, sign: int) -> Float[np.ndarray, " t"]:
    """One channel on a circle of length 1, where about one turn is made in a clip.

    `sign` of +1 or -1 goes round steadily. 0 covers the very same values at the same speed, but one half of the clip
    runs forward and the other backward, so that nothing but the order of the frames tells the two apart.
    """
    time = np.arange(frames)
    if not sign:
        half = int(np.clip(round(frames * rng.uniform(0.45, 0.55)), 1, frames - 1))
        time = np.where(time < half, time, frames - 1 + half - time)
        sign = rng.choice((-1, 1))
    return rng.uniform() + sign * rng.uniform(0.9, 1.1) * (time + 0.5) / frames


def _beat(rng: np.random.Generator, frames: int, sign: int) -> Float[np.ndarray, " t"]:
    """Brightness in 0..1 of the blinking: its rate rises (+1), falls (-1), or does both within the clip (0)."""
    time = (np.arange(frames) + 0.5) / frames
    ramp = time if sign else 1 - np.abs(2 * time - 1)
    if sign < 0 or (not sign and rng.integers(2)):
        ramp = 1 - ramp
    return 0.5 + 0.5 * np.sin(2 * np.pi * (rng.uniform() + np.cumsum(0.5 + 5 * ramp) / frames))


def _pan(rng: np.random.Generator, frames: int, sign: int) -> Float[np.ndarray, "t 2"]:
    """Camera offset: half the clip it moves, half it rests: rest last (+1), rest first (-1), or one inside the
    other.
    """
    quarters = {1: (1, 1, 0, 0), -1: (0, 0, 1, 1), 0: ((1, 0, 0, 1), (0, 1, 1, 0))[rng.integers(2)]}[sign]
    moving = np.asarray(quarters)[np.arange(frames) * 4 // frames]
    angle = rng.uniform(0, 2 * np.pi)
    distance = rng.uniform(0.7, 1.0) * np.cumsum(moving) / frames
    return rng.uniform(0, 1, 2) + distance[:, None] * np.array((np.cos(angle), np.sin(angle)))


_SHAPES: tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], ...] = (
    lambda u, v: np.sqrt(u * u + v * v),
    lambda u, v: np.maximum(np.abs(u), np.abs(v)) * np.float32(1.13),
    lambda u, v: np.maximum(np.abs(u) * np.float32(0.866) + v * np.float32(0.5), -v) * np.float32(1.5),
    lambda u, v: np.maximum(np.abs(u), np.abs(v) * np.float32(1.6)) * np.float32(0.9),
)


def render_clip(
    label: int, size: int, frames: int, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "t h w"], UInt8[np.ndarray, "t 2 h2 w2"]]:
    """Luma and (half-resolution) chroma planes of a clip of class `label`.

    An object of two tones moves over a textured ground on a torus (what leaves on the right enters on the left), and a
    blinking pillar circles round it. Every channel of this state moves in every class, with the same speed and the same
    values; see `_sweep`, `_beat` and `_pan` for what the class changes.

    Args:
      label: position in `MOTION_CLASSES`.
      size: height and width in pixels, even.
      frames: number of frames.
      rng: source of every nuisance, which makes the clip a function of its seed.
    """
    channel, sign = label // 2, 1 - 2 * (label % 2)
    x, y, log_size, angle, orbit = (
        _sweep(rng, frames, sign * (channel == c)).astype(np.float32)[:, None, None] for c in range(_CHANNELS)
    )
    blink = _beat(rng, frames, sign * (channel == _CHANNELS)).astype(np.float32)[:, None, None]
    pan = _pan(rng, frames, sign * (channel == _CHANNELS + 1))

    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    luma = _ground(rng, pan, size)
    dx = (grid - x + 0.5) % 1 - 0.5
    dy = (grid[:, None] - y + 0.5) % 1 - 0.5
    turn = 2 * np.pi * angle
    u, v = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    radius = np.float32(0.1 * rng.uniform(0.95, 1.1)) * np.float32(3.0) ** (log_size % 1)
    body = np.clip((radius - _SHAPES[rng.integers(len(_SHAPES))](u, v)) * size + 0.5, 0, 1)
    tone = np.clip(u * size + 0.5, 0, 1) * np.float32(rng.uniform(70, 95)) + np.float32(rng.uniform(130, 140))

    depth = np.sin(2 * np.pi * orbit)
    offset = (grid - x - np.float32(0.22) * np.cos(2 * np.pi * orbit) + 0.5) % 1 - 0.5
    pillar = np.clip((np.float32(0.05) * (1 + np.float32(0.4) * depth) - np.abs(offset)) * size + 0.5, 0, 1)
    glow = 20 + 170 * blink
    for mask, value in ((pillar * (depth <= 0), glow), (body, tone), (pillar * (depth > 0), glow)):
        luma += mask * (value - luma)

    hues = rng.uniform(0, 2 * np.pi), rng.uniform(-1, 1), np.pi + rng.uniform(-1, 1)  # ground, object, pillar
    colour = (128 + np.array((8, 50, 50)) * np.stack((np.cos(hues), np.sin(hues)))).astype(np.float32)
    small_body, small_pillar = body[:, None, ::2, ::2], pillar[:, None, :, ::2]
    chroma = np.broadcast_to(colour[:, :1, None], (frames, 2, size // 2, size // 2)).copy()
    back = small_pillar * (depth <= 0)[:, None]
    front = small_pillar * (depth > 0)[:, None]
    for mask, hue in ((back, 2), (small_body, 1), (front, 2)):
        chroma += mask * (colour[:, hue, None, None] - chroma)
    return np.clip(luma, 16, 235).astype(np.uint8), chroma.astype(np.uint8)


def _ground(rng: np.random.Generator, pan: np.ndarray, size: int) -> Float[np.ndarray, "t h w"]:
    """A periodic texture of a few waves, seen through a camera that moves in whole pixels."""
    waves = rng.choice([(1, 0), (0, 1), (1, 1), (1, -1), (2, 1), (1, 2), (2, -1), (1, -2), (3, 0), (0, 3)], 4, False)
    grid = 2 * np.pi * (np.arange(size) + 0.5) / size
    phase = waves[:, :1, None] * grid + waves[:, 1:, None] * grid[:, None] + rng.uniform(0, 2 * np.pi, (4, 1, 1))
    texture = (rng.uniform(65, 85) + 10 * np.cos(phase).sum(0)).astype(np.float32)
    columns, rows = (np.arange(size) + np.rint(pan.T[:, :, None] * size).astype(int)) % size
    return texture[rows[:, :, None], columns[:, None, :]]


def encode(luma: UInt8[np.ndarray, "t h w"], chroma: UInt8[np.ndarray, "t 2 h2 w2"]) -> bytes:
    """An h264 file in memory (mp4, yuv420p, 16 frames a second).

    One thread and no rate control by time, so that the same planes give the same bytes however busy the machine is.
    """
    import av

    frames, height, width = luma.shape
    planes = np.concatenate((luma.reshape(frames, -1), chroma.reshape(frames, -1)), 1)
    planes = planes.reshape(frames, height * 3 // 2, width)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=16, options={"preset": "ultrafast", "crf": "18", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for plane in planes:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(plane, format="yuv420p")))
        container.mux(stream.encode())
    return file.getvalue()
