"""name of a table -> figures that papers published: UP-DETR's (Dai et al., CVPR 2021), unless a title says otherwise.

Rows are named as in the suites. All figures are percentages.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ssldet.report.sections import Table


@dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """One published table.

    Attributes:
        title: Title of the table.
        columns: Metrics, by their names in this project.
        rows: Name -> one figure per column; `None` if the paper does not state it.
        note: Explanation for the reader.
    """

    title: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[float | None, ...]]
    note: str = ""

    def figure(self, row: str, measure: str) -> float | None:
        """Return one figure, or `None` if it was not published."""
        if row not in self.rows or measure not in self.columns:
            return None
        return self.rows[row][self.columns.index(measure)]

    def table(self) -> Table:
        """Return the whole table for a report."""
        return Table(columns=("published", *self.columns), rows=[(name, *row) for name, row in self.rows.items()])


_COCO = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_PANOPTIC = ("PQ", "SQ", "RQ", "PQ_things", "SQ_things", "RQ_things", "PQ_stuff", "SQ_stuff", "RQ_stuff", "AP_mask")

TABLES: Mapping[str, PublishedTable] = {
    "table1": PublishedTable(
        title="Pascal VOC, trained on 07+12 trainval, measured on 07 test; name/epochs",
        columns=("AP", "AP50", "AP75"),
        rows={
            "Faster R-CNN R50-C4": (56.1, 82.6, 62.7),
            "DETR/150": (49.9, 74.5, 53.1),
            "UP-DETR/150": (56.1, 79.7, 60.6),
            "DETR/300": (54.1, 78.0, 58.3),
            "UP-DETR/300": (57.2, 80.1, 62.0),
        },
    ),
    "table2": PublishedTable(
        title="COCO train2017 to val2017; name/epochs",
        columns=_COCO,
        rows={
            "Double-head R101-FPN": (41.9, 62.4, 45.9, 23.9, 45.2, 55.8),
            "DETR/500": (42.0, 62.4, 44.2, 20.5, 45.8, 61.1),
            "Faster R-CNN R50-FPN 3x": (40.2, 61.0, 43.8, 24.2, 43.5, 52.0),
            "DETR supervised CNN/150": (39.5, 60.3, 41.4, 17.5, 43.0, 59.1),
            "DETR SwAV CNN/150": (39.7, 60.3, 41.7, 18.5, 43.8, 57.5),
            "UP-DETR/150": (40.5, 60.8, 42.6, 19.0, 44.4, 60.0),
            "Faster R-CNN R50-FPN 9x": (42.0, 62.1, 45.5, 26.6, 45.4, 53.4),
            "DETR supervised CNN/300": (40.8, 61.2, 42.9, 20.1, 44.5, 60.3),
            "DETR SwAV CNN/300": (42.1, 63.1, 44.5, 19.7, 46.3, 60.9),
            "UP-DETR/300": (42.8, 63.0, 45.3, 20.8, 47.1, 61.7),
        },
        note="Of the gain of 2.0 AP over a supervised backbone at 300 epochs, 1.3 come from SwAV's backbone alone.",
    ),
    "table3": PublishedTable(
        title="One-shot detection on VOC 07 test, AP50",
        columns=("AP50_seen", "AP50_unseen"),
        rows={
            "SiamFC": (15.1, 13.3),
            "SiamRPN": (9.6, 14.2),
            "CompNet": (52.7, 52.1),
            "CoAE": (60.1, 68.2),
            "Li et al.": (61.1, 69.1),
            "DETR": (46.2, 57.3),
            "UP-DETR": (69.0, 73.1),
        },
    ),
    "table4": PublishedTable(
        title="COCO panoptic val, ResNet-50",
        columns=_PANOPTIC,
        rows={
            "PanopticFPN++": (42.4, 79.3, 51.6, 49.2, 82.4, 58.8, 32.3, 74.8, 40.6, 37.7),
            "UPSNet": (42.5, 78.0, 52.5, 48.6, 79.4, 59.6, 33.4, 75.9, 41.7, 34.3),
            "UPSNet-M": (43.0, 79.1, 52.8, 48.9, 79.7, 59.7, 34.1, 78.2, 42.3, 34.3),
            "DETR": (44.3, 80.0, 54.5, 49.2, 80.6, 60.3, 37.0, 79.1, 45.9, 32.9),
            "UP-DETR": (44.5, 80.3, 54.7, 49.6, 80.7, 60.7, 36.9, 78.9, 45.8, 34.0),
        },
    ),
    "table5": PublishedTable(
        title="Frozen backbone and reconstruction, VOC, 15 epochs of pretraining, 150 of fine-tuning",
        columns=("AP50",),
        rows={
            "DETR scratch": (74.5,),
            "(a)": (74.0,),
            "(b)": (78.7,),
            "(c)": (62.0,),
            "(d)": (78.7,),
        },
        note="(a) learns, without reconstruction; (b) frozen, without; (c) learns, with; (d) frozen, with.",
    ),
    "table6": PublishedTable(
        title="Patches of an image, VOC, 15 epochs of pretraining, 150 of fine-tuning",
        columns=("AP", "AP50", "AP75"),
        rows={"DETR": (49.9, 74.5, 53.1), "1": (53.1, 77.2, 57.4), "10": (54.9, 78.7, 59.1)},
    ),
    "few_coco": PublishedTable(
        title="COCO with few labels, Deformable DETR (DETReg's repository, docs/full-semi-sup.png); start/share",
        columns=("AP",),
        rows={
            "SwAV/1%": (11.79,),
            "SwAV/2%": (16.02,),
            "SwAV/5%": (22.81,),
            "SwAV/10%": (27.79,),
            "DETReg/1%": (14.58,),
            "DETReg/2%": (18.69,),
            "DETReg/5%": (24.80,),
            "DETReg/10%": (29.12,),
        },
    ),
    "fig6": PublishedTable(
        title="Attention mask (appendix A.2)",
        columns=(),
        rows={},
        note="Stated in words: no noticeable difference downstream; the pretext loss is lower late in training.",
    ),
    "fig7": PublishedTable(
        title="Query shuffle (appendix A.3), COCO, 300 epochs",
        columns=("AP",),
        rows={"plain": (43.1,), "shuffled": (42.8,)},
    ),
}
"""Name -> published table."""
