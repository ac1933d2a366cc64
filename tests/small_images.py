"""Small files of images that Pillow doesn't write: of odd kinds, or with odd contents."""

import struct
import zlib

# Tags of a TIFF file of 16 x 16 pixels, 8 bits of grey: sides, bits, compression, what zero is.
GREY = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 277: 1}


def png(width, depth, colour_type, row, *chunks):
    """A PNG file of one row, with chunks before its pixels, as (name, content)."""

    def chunk(name, content):
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def raw_tiff(tags, content):
    """A TIFF file of these numbers, by tags; tag 273 or 324 is set to where the content begins."""
    values = {tag: value if isinstance(value, tuple) else (value,) for tag, value in tags.items()}
    end = 8 + 2 + 12 * len(tags) + 4
    start = end + sum(4 * len(value) for value in values.values() if len(value) > 1)
    entries, more = b"", b""
    for tag, value in sorted(values.items()):
        value = (start,) if tag in (273, 324) else value
        packed = struct.pack(f"<{len(value)}I", *value)
        if len(value) > 1:
            packed, more = struct.pack("<I", end + len(more)), more + packed
        entries += struct.pack("<HHI", tag, 4, len(value)) + packed
    return struct.pack("<4sIH", b"II*\0", 8, len(tags)) + entries + bytes(4) + more + content
