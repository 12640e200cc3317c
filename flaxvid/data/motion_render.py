"""Draw and encode one clip of the `motion` data set: the same ingredients in every class, told apart only by time."""

import io
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8

BALL = ("right", "left", "down", "up")
PILLAR = ("turns back", "speeds up", "slows down")
MOTION_CLASSES: tuple[str, ...] = tuple(f"ball moves {way}, pillar {pace}" for way in BALL for pace in PILLAR)
# A mirrored clip shows the ball's other way; which way the pillar goes is no part of the class.
FLIP_LABELS: tuple[int, ...] = tuple(
    MOTION_CLASSES.index(f"ball moves {way}, pillar {pace}")
    for way in ("left", "right", "down", "up")
    for pace in PILLAR
)


def _travel(
    rng: np.random.Generator, progress: Float[np.ndarray, " t"], way: int, turns: float = 1.0
) -> Float[np.ndarray, "t 1 1"]:
    """Where something is on a circle of length 1 while `progress` goes from 0 to 1, about `turns` rounds in a clip.

    `way` of +1 or -1 goes round steadily. 0 covers the very same places at the same speed, but the second half
    backward: nothing but the order of the frames tells the two apart.
    """
    if not way:
        progress = np.where(progress < 0.5, progress, 1.5 - progress)
        way = int(rng.choice((-1, 1)))
    places = rng.uniform() + way * turns * rng.uniform(0.9, 1.1) * progress
    return places.astype(np.float32)[:, None, None]


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

    A bright ball, of one of four shapes, and a darker pillar move over a textured ground past which the camera drifts;
    one passes behind the other. The world is a torus: what leaves on the right enters on the left. The ball goes
    steadily along one axis and to and fro along the other, and the class says along which and which way. The pillar
    goes sideways, from a rest to a run or from a run to a rest, and in a third of the classes turns back half-way.
    Every place and every speed occurs in every class alike, so that a single frame, or all of them in another order,
    say next to nothing.

    Args:
      label: position in `MOTION_CLASSES`.
      size: height and width in pixels, even.
      frames: number of frames.
      rng: source of every nuisance, which makes the clip a function of its seed.
    """
    way, pace = divmod(label, len(PILLAR))
    time = (np.arange(frames) + 0.5) / frames
    x = _travel(rng, time, (1, -1, 0, 0)[way])
    y = _travel(rng, time, (0, 0, 1, -1)[way])
    speeding_up = bool(rng.integers(2)) if pace == 0 else pace == 1
    speed = 0.1 + 1.8 * (time if speeding_up else 1 - time)
    pillar_x = _travel(rng, np.cumsum(speed) / frames, 0 if pace == 0 else int(rng.choice((-1, 1))), 0.8)

    luma = _ground(rng, frames, size)
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    dx, dy = (grid - x + 0.5) % 1 - 0.5, (grid[:, None] - y + 0.5) % 1 - 0.5
    edge = np.float32(rng.uniform(0.15, 0.18)) - _SHAPES[rng.integers(len(_SHAPES))](dx, dy)
    ball = np.clip(edge * size + 0.5, 0, 1)
    pillar = np.clip((np.float32(0.09) - np.abs((grid - pillar_x + 0.5) % 1 - 0.5)) * size + 0.5, 0, 1)

    bright, dark = np.float32(rng.uniform(205, 230)), np.float32(rng.uniform(145, 160))
    hues = rng.uniform(0, 2 * np.pi), rng.uniform(-0.4, 0.4), np.pi + rng.uniform(-0.4, 0.4)  # ground, ball, pillar
    colours = (np.array((6, 50, 50)) * np.stack((np.cos(hues), np.sin(hues)))).astype(np.float32)
    chroma = np.broadcast_to(colours[:, :1, None], (frames, 2, size // 2, size // 2)).copy()
    layers = ((ball, bright, ball[:, None, ::2, ::2]), (pillar, dark, pillar[:, None, :, ::2]))
    for layer in rng.permutation(2):  # who passes behind whom
        mask, value, half = layers[layer]
        luma += mask * (value - luma)
        chroma += half * (colours[:, 1 + layer, None, None] - chroma)
    return np.clip(luma, 16, 235).astype(np.uint8), (chroma + 128).astype(np.uint8)


def _ground(rng: np.random.Generator, frames: int, size: int) -> Float[np.ndarray, "t h w"]:
    """A faint periodic texture of a few waves, seen through a camera that drifts steadily, in whole pixels."""
    waves = rng.choice([(1, 0), (0, 1), (1, 1), (1, -1), (2, 1), (1, 2), (2, -1), (1, -2), (3, 0), (0, 3)], 4, False)
    grid = 2 * np.pi * (np.arange(size) + 0.5) / size
    phase = waves[:, :1, None] * grid + waves[:, 1:, None] * grid[:, None] + rng.uniform(0, 2 * np.pi, (4, 1, 1))
    texture = (rng.uniform(60, 80) + 7 * np.cos(phase).sum(0)).astype(np.float32)
    drift = np.arange(frames) / frames * rng.uniform(-0.3, 0.3, (2, 1)) * size
    rows, columns = (np.arange(size) + np.rint(drift).astype(int)[..., None]) % size
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
