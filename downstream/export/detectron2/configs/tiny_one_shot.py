"""One-shot detection on small images on a CPU; give `data.train`, `data.test` and `data.set=[task.unseen=…]`."""

from downstream.export.detectron2.lazy import configuration

globals().update(
    configuration(
        "one_shot/tiny",
        train=["coco:train.json:images"],
        test="coco:val.json:images",
        images=300,
        device="cpu",
    )
)
