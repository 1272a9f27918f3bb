"""VOC: trainval of 2007 and 2012, measured on test of 2007."""

from downstream.export.detectron2.lazy import configuration

globals().update(
    configuration(
        "detection/r50",
        train=["voc_2007_trainval", "voc_2012_trainval"],
        test="voc_2007_test",
        images=16551,
    )
)
