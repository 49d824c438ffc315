"""Reading an XML file in whatever encoding it declares."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

from isodet.errors import IsodetError

_DECLARATION = re.compile(rb"""^(?:\xef\xbb\xbf)?\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._:-]+)["'][^>]*\?>""")


class XmlError(IsodetError, ValueError):
    """A file that is no XML that can be read; the message says why, without the file's name."""


def read_xml(path: Path) -> ET.Element:
    """The first element of the XML file at `path`. Raises `XmlError`.

    Python's parser knows UTF-8, UTF-16 and encodings of one byte. Files of other declared encodings (GB2312, Big5,
    Shift_JIS) are decoded by Python itself.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise XmlError(f"cannot be read: {error.strerror}") from None
    try:
        return ET.fromstring(data)
    except ET.ParseError as error:
        raise XmlError(f"not well-formed XML: {error}") from None
    except (ValueError, LookupError) as error:
        declared = _DECLARATION.match(data)
        if declared is None:
            raise XmlError(f"not well-formed XML: {error}") from None
    name = declared[1].decode("ascii")
    # What is declared as GB2312 is often GBK, and GB 18030 holds both.
    codec = "gb18030" if name.lower().replace("_", "").replace("-", "") in ("gb2312", "gbk", "cp936") else name
    try:
        return ET.fromstring(data[declared.end() :].decode(codec))
    except LookupError:
        raise XmlError(f"declares the encoding {name!r}, which is not known; save it as UTF-8") from None
    except ET.ParseError as error:
        raise XmlError(f"not well-formed XML: {error}") from None
    except ValueError as error:
        raise XmlError(f"is not in the encoding {name!r} that it declares: {error}") from None
