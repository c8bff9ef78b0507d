"""Small ICC profiles with an obvious effect, for tests (layout: ICC.1:2001-04)."""

import struct

from PIL import ImageCms


def swapped_srgb() -> bytes:
    """sRGB with the primaries of red and blue exchanged, so that red pixels become blue."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    tags = 132 + 12 * struct.unpack(">I", data[128:132])[0]
    table = data[132:tags].replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    return data[:132] + table + data[tags:]


def green_ink_cmyk() -> bytes:
    """A CMYK profile with green ink instead of cyan: cyan alone is Lab (88, -79, 81), no ink white, all else black."""
    table = bytearray()
    for corner in range(16):  # a 2×2×2×2 grid, the last channel (black) varies fastest
        light, a, b = {0: (100, 0, 0), 0b1000: (88, -79, 81)}.get(corner, (0, 0, 0))
        table += bytes([round(light * 255 / 100), a + 128, b + 128])
    identity = bytes(range(256))
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut = b"mft1" + bytes([0, 0, 0, 0, 4, 3, 2, 0]) + matrix + identity * 4 + bytes(table) + identity * 3
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    name = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78)
    blocks = {b"desc": name, b"wtpt": white, b"A2B0": lut}
    offset, table_rows, body = 132 + 12 * len(blocks), b"", b""
    for tag, block in blocks.items():
        block += bytes(-len(block) % 4)
        table_rows += struct.pack(">4sII", tag, offset + len(body), len(block))
        body += block
    header = bytearray(128)
    struct.pack_into(">I4sI4s4s4s", header, 0, offset + len(body), b"test", 0x02400000, b"prtr", b"CMYK", b"Lab ")
    header[36:40] = b"acsp"
    struct.pack_into(">3i", header, 68, 63190, 65536, 54061)
    return bytes(header) + struct.pack(">I", len(blocks)) + table_rows + body
