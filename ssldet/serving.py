"""A trained model -> a page on this machine that answers images: all detections, or those of a part that is marked.

The page is Gradio's, without its analytics, shared links and monitoring; nothing leaves this machine, and only this
machine is listened to unless another address is named.
"""

import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor

from ssldet import chance
from ssldet.data.bands import RGB
from ssldet.data.collate import collate
from ssldet.data.judging import MAX_ASPECT
from ssldet.errors import ConfigError, DataError, SetupError, SsldetError
from ssldet.importing.base import Opened
from ssldet.patches import PatchObjective
from ssldet.report.pictures import draw_detections
from ssldet.types import Detections, Pixels, Sample, Targets
from ssldet.verbs.asking import asking
from ssldet.verbs.opening import Step, Which, open_answering

log = logging.getLogger(__name__)

LOCAL = "127.0.0.1"
PORT = 7860
SMALLEST = 4
"""Shortest side in pixels of a patch that is looked for."""
HEADERS = ["class", "confidence", "left", "top", "width", "height"]
OFF = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_SHARE": "False"}
"""Variables by which Gradio and its client are told to report nothing; set before they are imported."""
MANY = 300
"""Rows of the table, at most."""


@dataclass(frozen=True)
class Served:
    """A model that answers one image at a time.

    Attributes:
        opened: The model.
        device: `auto`, `cpu` or `cuda`.
    """

    opened: Opened
    device: str = "auto"

    @property
    def finds_patches(self) -> bool:
        """Whether it looks for a patch that it is shown, and knows no classes."""
        return isinstance(self.opened.objective, PatchObjective)

    @property
    def classes(self) -> tuple[str, ...]:
        """What it finds."""
        return ("patch",) if self.finds_patches else self.opened.classes

    def answer(self, pixels: UInt8[Tensor, "3 H W"], patch: UInt8[Tensor, "3 _ _"] | None = None) -> Detections:
        """Return everything that it finds, in pixels of the image.

        Args:
            pixels: RGB.
            patch: What to look for, with a model that finds patches.

        Raises:
            DataError: The image or the patch is too small, or too thin.
        """
        height, width = pixels.shape[1:]
        if min(height, width) < 17 or max(height, width) > MAX_ASPECT * min(height, width):
            raise DataError(f"an image of {width} x {height} pixels is too small or too thin")
        sample = Sample(image=pixels, targets=Targets.none(), key="image", original_size=(height, width))
        views = self.opened.task.views(training=False)
        ask = asking(self.opened, None if patch is None else [patch], self.device)
        ((_, (found,)),) = ask([collate([views(sample, chance.generator(0, "views", 0, 0))])])
        assert isinstance(found, Detections)
        return found


def drawn_over(layers: Sequence[UInt8[np.ndarray, "H W 4"]]) -> tuple[int, int, int, int] | None:
    """Return the corners of the least rectangle around all strokes, in pixels; `None` where nothing was drawn.

    Args:
        layers: What was drawn, transparent elsewhere.
    """
    marked: Bool[np.ndarray, "H W"] | None = None
    for layer in layers:
        marked = layer[..., 3] > 0 if marked is None else marked | (layer[..., 3] > 0)
    if marked is None or not marked.any():
        return None
    rows, columns = (np.flatnonzero(marked.any(axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def rows_of(found: Detections, classes: Sequence[str], threshold: float, wanted: Sequence[str]) -> list[list[Any]]:
    """Return the table of the detections, the most confident first.

    Args:
        found: All detections.
        classes: Names in the order of the labels.
        threshold: Least confidence.
        wanted: Classes to show.
    """
    rows = []
    chosen = shown(found, classes, threshold, wanted)
    for place in chosen.scores.argsort(descending=True, stable=True).tolist()[:MANY]:
        left, top, right, bottom = (round(side) for side in chosen.boxes[place].tolist())
        score = round(float(chosen.scores[place]), 3)
        rows.append([_name(int(chosen.labels[place]), classes), score, left, top, right - left, bottom - top])
    return rows


def shown(found: Detections, classes: Sequence[str], threshold: float, wanted: Sequence[str]) -> Detections:
    """Return the detections that are confident enough and of a wanted class.

    Args:
        found: All detections.
        classes: Names in the order of the labels.
        threshold: Least confidence.
        wanted: Classes to show.
    """
    of_class = [_name(label, classes) in wanted or not classes for label in found.labels.tolist()]
    return found.only((found.scores >= threshold) & torch.tensor(of_class, dtype=torch.bool))


def _name(label: int, classes: Sequence[str]) -> str:
    return classes[label] if label < len(classes) else str(label)


def serve(
    start: str | Path,
    *,
    weights: Which = "last",
    step: Step | None = None,
    device: str = "auto",
    host: str = LOCAL,
    port: int = PORT,
    wait: bool = True,
) -> Callable[[], None]:
    """Show a page that answers images with a trained model, until it is interrupted.

    Args:
        start: A run folder, a weights file, or an ONNX file that ssldet wrote.
        weights: Which weights of a run folder: `last` or `best`.
        step: Take a checkpoint of the run, which need not have finished.
        device: `auto`, `cpu` or `cuda`.
        host: Address to listen on; another than 127.0.0.1 lets other machines in, without a password.
        port: Port to listen on; zero takes a free one.
        wait: Whether to wait until the process is interrupted.

    Returns:
        What closes the page, where it is not waited for.

    Raises:
        SetupError: Gradio is not installed, or the port is taken.
        ConfigError: The model answers no images that a browser can send.
    """
    if importlib.util.find_spec("gradio") is None:
        raise SetupError("the page is made by Gradio; pip install 'ssldet[app]'")
    opened = open_answering(start, weights, step)
    if (channels := opened.objective.detector.in_channels) != RGB:
        raise ConfigError(
            f"{start}: takes images of {channels} channels, which a browser can't show; use ssldet predict"
        )
    if not opened.classes and not isinstance(opened.objective, PatchObjective):
        raise ConfigError(
            f"{start}: neither finds classes nor patches; pretrain random query patch detection, or fine-tune"
        )
    page = build(Served(opened, device), str(start))
    if host != LOCAL:
        log.warning("%s: whoever reaches this machine can use the page; there is no password", host)
    try:
        _, address, _ = page.launch(
            server_name=host, server_port=port or None, share=False, inbrowser=False, quiet=True,
            prevent_thread_lock=True, enable_monitoring=False, ssr_mode=False, footer_links=[],
        )  # fmt: skip
    except OSError as error:
        raise SetupError(f"{host}:{port}: can't be listened on ({error}); choose another --port") from error
    log.info("%s answers at %s (Ctrl+C ends it)", start, address)
    if wait:
        page.block_thread()
    return partial(page.close, verbose=False)


def build(served: Served, title: str) -> Any:
    """Build the page, which `launch()` shows.

    Args:
        served: The model.
        title: What the page is called.
    """
    for name, value in OFF.items():
        os.environ[name] = value
    import gradio as gr

    with gr.Blocks(title=f"ssldet: {title}", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        found = gr.State(None)
        with gr.Row():
            with gr.Column():
                image, query = _inputs(gr, served)
                find = gr.Button("find", variant="primary", visible=served.finds_patches)
                threshold = gr.Slider(0, 1, value=0.5, step=0.01, label="least confidence")
                names = list(served.classes)
                wanted = gr.CheckboxGroup(names, value=names, label="classes", visible=not served.finds_patches)
            with gr.Column():
                picture = gr.Image(label="found", format="png", buttons=["download", "fullscreen"])
                table = gr.Dataframe(headers=HEADERS, label="boxes, in pixels", interactive=False)
        draw = partial(_draw, served)
        asked = [query, image] if served.finds_patches else [image]
        change = find.click if served.finds_patches else image.change
        change(partial(_ask, gr, served), asked, found, api_visibility="private").then(
            draw, [found, threshold, wanted], [picture, table], api_visibility="private"
        )
        for control in (threshold, wanted):
            control.change(draw, [found, threshold, wanted], [picture, table], api_visibility="private")
    return page


def _inputs(gr: Any, served: Served) -> tuple[Any, Any]:
    if not served.finds_patches:
        return gr.Image(type="numpy", image_mode="RGB", sources=["upload", "clipboard"], label="image"), None
    brush = gr.Brush(colors=["#e69f00"], color_mode="fixed", default_size=12)
    query = gr.ImageEditor(
        type="numpy", image_mode="RGBA", sources=["upload", "clipboard"], brush=brush, layers=False, transforms=(),
        label="draw over what to look for",
    )  # fmt: skip
    label = "look for it in this image (empty: in the same one)"
    return gr.Image(type="numpy", image_mode="RGB", sources=["upload", "clipboard"], label=label), query


def _ask(gr: Any, served: Served, *given: Any) -> tuple[Pixels, Detections] | None:
    """Answer what the page holds; what is wrong with it is said on the page."""
    image = given[-1]
    try:
        if not served.finds_patches:
            return None if image is None else (_pixels(image), served.answer(_pixels(image)))
        editor = given[0]
        if editor is None or editor["background"] is None:
            return None
        pixels, corners = _pixels(editor["background"]), drawn_over(editor["layers"])
        if corners is None:
            raise DataError("draw over what to look for first")
        left, top, right, bottom = corners
        if min(right - left, bottom - top) < SMALLEST:
            raise DataError(f"what was drawn over is smaller than {SMALLEST} pixels")
        where = pixels if image is None else _pixels(image)
        return where, served.answer(where, pixels[:, top:bottom, left:right])
    except SsldetError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _draw(
    served: Served, answered: tuple[Pixels, Detections] | None, threshold: float, wanted: Sequence[str]
) -> tuple[Image.Image | None, list[list[Any]]]:
    if answered is None:
        return None, []
    pixels, found = answered
    chosen = shown(found, served.classes, threshold, wanted)
    picture = draw_detections(pixels, chosen, classes=served.classes, threshold=threshold)
    return picture, rows_of(found, served.classes, threshold, wanted)


def _pixels(image: np.ndarray) -> Tensor:
    """Return an image of the page, whose alpha is left out."""
    return torch.from_numpy(np.ascontiguousarray(image[..., :3])).permute(2, 0, 1)
