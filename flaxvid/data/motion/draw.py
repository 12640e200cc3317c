"""Draws and encodes one clip of the `motion` data set. All classes have the same ingredients; only time differs.

One camera sees a flat world. Three cameras see a scene in depth, and each of them misses something.
"""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

WAYS = ("right", "left", "down", "up")
PACES = ("speeds up", "slows down", "wavers")
MOTION_CLASSES: tuple[str, ...] = (
    *(f"goes {way} and {pace}" for way in WAYS for pace in PACES),
    "comes nearer",
    "goes away",
    "circles clockwise",
    "circles counter-clockwise",
)

CAMERAS = {"front": 0, "left": 60, "right": -60}
"""Where each camera looks, in degrees to the right of the front camera's line, seen from above."""

HEADINGS: tuple[str, ...] = (
    "goes away",
    "goes away to the right",
    "goes right",
    "comes nearer to the right",
    "comes nearer",
    "comes nearer to the left",
    "goes left",
    "goes away to the left",
)
"""The classes of a scene: the ball's way as the front camera sees it, in eighths of a turn to the right."""


def _travel(
    rng: np.random.Generator, progress: Float[np.ndarray, " t"], way: int, turns: float = 1.0, *, back: bool = False
) -> Float[np.ndarray, "t 1 1"]:
    """The place on a circle of length 1 while `progress` goes from 0 to 1: about `turns` rounds in a clip.

    `way` is +1 or -1. With `back` the second half runs backward, over the same places at the same speed, so only the
    order of the frames tells the two apart.
    """
    if back:
        progress = np.where(progress < 0.5, progress, 1.5 - progress)
    places = rng.uniform() + way * turns * rng.uniform(0.9, 1.1) * progress
    return places.astype(np.float32)[:, None, None]


def _steady(frames: int) -> Float[np.ndarray, " t"]:
    return (np.arange(frames) + 0.5) / frames


def _progress(rng: np.random.Generator, frames: int, pace: int) -> Float[np.ndarray, " t"]:
    """Goes from 0 to 1. It speeds up (pace 0), slows down (1), or does both in either order (2)."""
    time = _steady(frames)
    ramp = 1 - np.abs(2 * time - 1) if pace == 2 else time
    if pace == 1 or (pace == 2 and rng.integers(2)):
        ramp = 1 - ramp
    speed = 0.1 + 1.8 * ramp
    return (np.cumsum(speed) - speed / 2) / frames


def _ball(label: int, frames: int, rng: np.random.Generator) -> tuple[Float[np.ndarray, "t 1 1"], ...]:
    """The ball of a class: x, y and nearness, each on a circle of length 1."""
    lines = len(WAYS) * len(PACES)
    way, pace = divmod(label, len(PACES)) if label < lines else (None, int(rng.integers(len(PACES))))
    progress = _progress(rng, frames, pace)

    def there_and_back():
        return _travel(rng, progress, int(rng.choice((-1, 1))), back=True)

    x, y, nearness = there_and_back(), there_and_back(), there_and_back()
    if way is not None:
        onward = _travel(rng, progress, 1 - 2 * (way % 2))
        return (onward, y, nearness) if way < 2 else (x, onward, nearness)
    if label < lines + 2:
        return x, y, _travel(rng, progress, 1 if label == lines else -1)
    angle = 2 * np.pi * _travel(rng, progress, 1 if label == lines + 2 else -1)
    centre_x, centre_y = rng.uniform(0, 1, 2)
    return (
        (centre_x + 0.25 * np.cos(angle)).astype(np.float32),
        (centre_y + 0.25 * np.sin(angle)).astype(np.float32),
        nearness,
    )


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

    A bright ball, of one of four shapes, and a darker pillar move over a textured ground while the camera drifts. One
    passes behind the other. The world is a torus: what leaves on the right enters on the left. The ball's x, y and size
    go there and back at a pace that rises, falls, or does both. One difference makes the class: one of them goes on, or
    x and y go round. The pillar goes there and back in all classes. All places, sizes and speeds are equally frequent
    in all classes, so a single frame, or all frames in another order, say almost nothing.

    Args:
        label: Position in `MOTION_CLASSES`.
        size: Height and width in pixels, even.
        frames: Number of frames.
        rng: Draws everything that the label leaves open.
    """
    x, y, nearness = _ball(label, frames, rng)
    pillar_x = _travel(rng, _steady(frames), int(rng.choice((-1, 1))), 0.8, back=True)

    luma = _ground(rng, frames, size)
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    radius = np.float32(0.1) * np.float32(2.2) ** (nearness % 1)
    ball = _ball_mask(size, x, y, radius, rng.integers(len(_SHAPES)))
    pillar = np.clip((np.float32(0.09) - np.abs((grid - pillar_x + 0.5) % 1 - 0.5)) * size + 0.5, 0, 1)
    return _compose(luma, ball, pillar, _paints(rng), rng.permutation(2))


def render_camera(
    label: int, size: int, frames: int, camera: str, scene: np.random.Generator, own: np.random.Generator
) -> tuple[UInt8[np.ndarray, "t h w"], UInt8[np.ndarray, "t 2 h2 w2"]]:
    """Luma and (half-resolution) chroma planes of what one camera sees of a scene of class `label`.

    A ball goes over the ground in a straight line, in one of eight directions and at one of many speeds. It also goes
    up and down, which means nothing. Each camera sees the part of the way across its line of sight. Nearness does not
    show, so a ball that comes nearer looks like one that goes away, and a slow one across like a faster one aslant. No
    camera can tell the class alone; any two can. Each camera has a ground and a pillar of its own, which may hide the
    ball.

    Args:
        label: Position in `HEADINGS`.
        size: Height and width in pixels, even.
        frames: Number of frames.
        camera: One of `CAMERAS`.
        scene: Draws what all cameras share. It has the same state for each of them.
        own: Draws what only this camera sees.
    """
    heading = 2 * np.pi * label / len(HEADINGS) + scene.uniform(-0.15, 0.15)
    way = 0.3 * 4 ** scene.uniform() * _progress(scene, frames, int(scene.integers(3)))
    y = _travel(scene, _steady(frames), int(scene.choice((-1, 1))), 0.6, back=True)
    radius, shape, paints = np.float32(scene.uniform(0.12, 0.18)), scene.integers(len(_SHAPES)), _paints(scene)

    across = np.sin(heading - np.deg2rad(CAMERAS[camera]))
    x = (own.uniform() + across * way).astype(np.float32)[:, None, None]
    pillar_x = _travel(own, _steady(frames), int(own.choice((-1, 1))), 0.8, back=True)
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    pillar = np.clip((np.float32(0.12) - np.abs((grid - pillar_x + 0.5) % 1 - 0.5)) * size + 0.5, 0, 1)
    return _compose(_ground(own, frames, size), _ball_mask(size, x, y, radius, shape), pillar, paints, (0, 1))


Paints = tuple[np.float32, np.float32, Float[np.ndarray, "2 3"]]


def _ball_mask(
    size: int, x: Float[np.ndarray, "t 1 1"], y: Float[np.ndarray, "t 1 1"], radius: Any, shape: int | np.integer
) -> Float[np.ndarray, "t h w"]:
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    dx, dy = (grid - x + 0.5) % 1 - 0.5, (grid[:, None] - y + 0.5) % 1 - 0.5
    return np.clip((radius - _SHAPES[shape](dx, dy)) * size + 0.5, 0, 1)


def _paints(rng: np.random.Generator) -> Paints:
    """Luma of ball and pillar, and the chroma of ground, ball and pillar."""
    bright, dark = np.float32(rng.uniform(205, 230)), np.float32(rng.uniform(145, 160))
    hues = rng.uniform(0, 2 * np.pi), rng.uniform(-0.4, 0.4), np.pi + rng.uniform(-0.4, 0.4)  # ground, ball, pillar
    return bright, dark, (np.array((6, 50, 50)) * np.stack((np.cos(hues), np.sin(hues)))).astype(np.float32)


def _compose(
    luma: Float[np.ndarray, "t h w"],
    ball: Float[np.ndarray, "t h w"],
    pillar: Float[np.ndarray, "t 1 w"],
    paints: Paints,
    order: Sequence[int] | Int[np.ndarray, " 2"],
) -> tuple[UInt8[np.ndarray, "t h w"], UInt8[np.ndarray, "t 2 h2 w2"]]:
    """Paints ball (0) and pillar (1) over the ground in some order. The first passes behind the second."""
    (frames, size, _), (bright, dark, colours) = luma.shape, paints
    chroma = np.broadcast_to(colours[:, :1, None], (frames, 2, size // 2, size // 2)).copy()
    layers = ((ball, bright, ball[:, None, ::2, ::2]), (pillar, dark, pillar[:, None, :, ::2]))
    for layer in order:
        mask, value, half = layers[layer]
        luma += mask * (value - luma)
        chroma += half * (colours[:, 1 + layer, None, None] - chroma)
    return np.clip(luma, 16, 235).astype(np.uint8), (chroma + 128).astype(np.uint8)


def _ground(rng: np.random.Generator, frames: int, size: int) -> Float[np.ndarray, "t h w"]:
    """A faint periodic texture of a few waves, seen by a camera that drifts steadily, in whole pixels."""
    waves = rng.choice([(1, 0), (0, 1), (1, 1), (1, -1), (2, 1), (1, 2), (2, -1), (1, -2), (3, 0), (0, 3)], 4, False)
    grid = 2 * np.pi * (np.arange(size) + 0.5) / size
    phase = waves[:, :1, None] * grid + waves[:, 1:, None] * grid[:, None] + rng.uniform(0, 2 * np.pi, (4, 1, 1))
    texture = (rng.uniform(60, 80) + 7 * np.cos(phase).sum(0)).astype(np.float32)
    drift = np.arange(frames) / frames * rng.uniform(-0.3, 0.3, (2, 1)) * size
    rows, columns = (np.arange(size) + np.rint(drift).astype(int)[..., None]) % size
    return texture[rows[:, :, None], columns[:, None, :]]


def change_look(
    luma: UInt8[np.ndarray, "t h w"], chroma: UInt8[np.ndarray, "t 2 h2 w2"], rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "t h w"], UInt8[np.ndarray, "t 2 h2 w2"]]:
    """The same clip as another camera films it; its class stays.

    The picture is brighter and flatter, its light flickers, its colours are others and stronger, the sensor is noisy,
    and the camera shakes by whole pixels about its place, so that all moves alike and to and fro. A network that was
    trained on the usual look keeps about half of its accuracy.

    Args:
        luma: Luma planes.
        chroma: Chroma planes.
        rng: Draws what the look leaves open.
    """
    frames, size, _ = luma.shape
    time = 2 * np.pi * (_steady(frames) + rng.uniform())
    light = rng.uniform(70, 100) + 12 * np.sin(rng.integers(2, 5) * time)
    bright = light[:, None, None] + rng.uniform(0.4, 0.6) * luma + rng.normal(0, 10, luma.shape)
    turn = rng.uniform(-1, 1)
    turned = 1.3 * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    colours = np.einsum("ij,tjhw->tihw", turned, chroma - 128.0) + rng.normal(0, 6, chroma.shape)
    # Even numbers of pixels, for the chroma planes have half of them.
    shake = 2 * np.rint(size / 64 * np.sin(rng.integers(2, 6, (2, 1)) * time + rng.uniform(0, 6, (2, 1)))).astype(int)
    luma = np.stack([np.roll(frame, tuple(move), (0, 1)) for frame, move in zip(bright, shake.T, strict=True)])
    chroma = np.stack([np.roll(frame, tuple(move // 2), (1, 2)) for frame, move in zip(colours, shake.T, strict=True)])
    return np.clip(luma, 16, 235).astype(np.uint8), np.clip(chroma + 128, 16, 240).astype(np.uint8)


def encode(luma: UInt8[np.ndarray, "t h w"], chroma: UInt8[np.ndarray, "t 2 h2 w2"]) -> bytes:
    """An h264 file in memory (mp4, yuv420p, 16 frames a second).

    One thread and a constant rate factor give the same bytes for the same planes, however busy the machine is.
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
