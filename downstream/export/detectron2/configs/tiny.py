"""Small images on a CPU; give `data.train` and `data.test`."""

from downstream.export.detectron2.lazy import configuration

globals().update(
    configuration(
        "detection/tiny",
        train=["coco:train.json:images"],
        test="coco:val.json:images",
        images=300,
        device="cpu",
    )
)
