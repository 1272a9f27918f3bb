"""a plug-in -> the laws it must keep: public, so that plug-ins of other packages are checked exactly as ours are.

A law is a function that raises `AssertionError` and says what was broken. `check_pretext_task`, `check_source` and
`check_exporter` run them all; `PRETEXT_LAWS`, `SOURCE_LAWS` and `EXPORT_LAWS` list them, for a test with one line per
law.
"""

from ssldet.testing.detectors import DETECTOR_LAWS, DetectorLaw, check_detector
from ssldet.testing.exporters import EXPORT_LAWS, ExportCase, ExportLaw, check_exporter
from ssldet.testing.sources import SOURCE_LAWS, SourceLaw, check_source
from ssldet.testing.tasks import PRETEXT_LAWS, Law, check_pretext_task, tiny_detector

__all__ = [
    "DETECTOR_LAWS",
    "EXPORT_LAWS",
    "PRETEXT_LAWS",
    "SOURCE_LAWS",
    "DetectorLaw",
    "ExportCase",
    "ExportLaw",
    "Law",
    "SourceLaw",
    "check_detector",
    "check_exporter",
    "check_pretext_task",
    "check_source",
    "tiny_detector",
]
