"""Reading an XML file in the encoding that it declares."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

from runtime.datasets.annotations import BrokenEntry

_DECLARATION = re.compile(rb"""^(?:\xef\xbb\xbf)?\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._:-]+)["'][^>]*\?>""")


def read_xml(path: Path) -> ET.Element:
    """The first element of the XML file at `path`. Raises `BrokenEntry`.

    Python's parser knows UTF-8, UTF-16 and encodings of one byte. Files of other declared encodings (GB2312, Big5,
    Shift_JIS) are decoded by Python itself.
    """
    try:
        data = path.read_bytes()
        return ET.fromstring(data)
    except OSError as error:
        raise BrokenEntry.at(path, f"cannot be read: {error.strerror}") from None
    except (ET.ParseError, ValueError, LookupError) as error:
        declared = None if isinstance(error, ET.ParseError) else _DECLARATION.match(data)
        if declared is None:
            raise BrokenEntry.at(path, f"not well-formed XML: {error}") from None
    name = declared[1].decode("ascii")
    # A file that declares GB2312 is often GBK; GB 18030 includes both.
    codec = "gb18030" if name.lower().replace("_", "").replace("-", "") in ("gb2312", "gbk", "cp936") else name
    try:
        return ET.fromstring(data[declared.end() :].decode(codec))
    except LookupError:
        raise BrokenEntry.at(path, f"declares the encoding {name!r}, which is not known; save it as UTF-8") from None
    except ET.ParseError as error:
        raise BrokenEntry.at(path, f"not well-formed XML: {error}") from None
    except ValueError as error:
        raise BrokenEntry.at(path, f"is not in the encoding {name!r} that it declares: {error}") from None
