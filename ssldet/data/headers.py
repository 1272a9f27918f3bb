"""first bytes of a JPEG -> its width and height, where nothing before its pixels is unusual; Pillow opens the others.

Pillow takes 28 microseconds for the header of a JPEG, most of them to build tables that nobody asks for when a million
files are listed. What is accepted here, Pillow accepts with the same size, upright as it is stored: files with EXIF or
XMP, which may state a turn, with several pictures, or with anything that Pillow might refuse, are left to it.
"""

HEAD = 4096
"""Bytes that are looked at: a page, which is more than the tables of a picture without metadata take."""
START_OF_IMAGE, START_OF_SCAN = b"\xff\xd8", 0xDA
FRAMES = (0xC0, 0xC1, 0xC2)
"""Baseline, extended and progressive frames, compressed by Huffman's codes."""
TABLES = 0xDB
"""Segments of quantisation tables, of 64 numbers of one or two bytes, each behind a byte that says which."""
HARMLESS = frozenset((0xC4, 0xDD, 0xFE, *range(0xE3, 0xED), 0xEF))
"""Huffman tables, restart intervals, comments, and data of programs, which do not matter here."""
KNOWN = {0xE0: (b"", 7), 0xE2: (b"ICC_PROFILE\0", 14), 0xEE: (b"Adobe", 7)}
"""Data of programs whose content Pillow reads -> how it begins, and the fewest bytes of which Pillow makes sense."""


def plain_jpeg(head: bytes) -> tuple[int, int] | None:
    """Return width and height of a JPEG; `None` where Pillow has to look.

    Args:
        head: The first bytes of a file, `HEAD` of them or all.
    """
    if not head.startswith(START_OF_IMAGE):
        return None
    place, size = 2, None
    while place + 4 <= len(head) and head[place] == 0xFF:
        kind, begin = head[place + 1], place + 4
        place += 2 + (head[place + 2] << 8 | head[place + 3])
        if not begin <= place <= len(head):
            return None
        if kind == START_OF_SCAN:
            return size
        if kind in HARMLESS:
            continue
        if kind == TABLES:
            if not _whole_tables(head, begin, place):
                return None
        elif kind in FRAMES and size is None:
            size = _frame(head[begin:place])
            if size is None:
                return None
        else:
            start, fewest = KNOWN.get(kind, (b"", len(head)))
            if place - begin < fewest or not head.startswith(start, begin):
                return None
    return None


def _whole_tables(head: bytes, begin: int, end: int) -> bool:
    """Tell whether a segment holds whole tables and nothing else."""
    while begin < end:
        begin += 65 if head[begin] < 16 else 129
    return begin == end


def _frame(segment: bytes) -> tuple[int, int] | None:
    """Return width and height of a frame of 8 bits and of one, three or four channels."""
    if len(segment) < 6 or segment[0] != 8 or segment[5] not in {1, 3, 4} or len(segment) != 6 + 3 * segment[5]:
        return None
    return segment[3] << 8 | segment[4], segment[1] << 8 | segment[2]
