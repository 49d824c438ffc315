"""Annotation files that isodet does not read, recognized by content: which tool wrote a file, and what to export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LABEL_STUDIO = "a Label Studio task list; export it there as COCO or as YOLO with images"
CREATE_ML = "CreateML's JSON; export it as COCO (Roboflow: 'COCO'; or import it into CVAT or FiftyOne and export COCO)"
LABELME = (
    "Labelme's JSON of one picture; Labelme's own examples/bbox_detection/labelme2voc.py (VOC) or "
    "examples/instance_segmentation/labelme2coco.py (COCO) write what is read"
)
VIA = "a project of the VGG Image Annotator (VIA); choose Annotation, Export Annotations (COCO format) there"
DATUMARO = "Datumaro's own JSON; write COCO with: datum convert -if datumaro -i FOLDER -f coco_instances -o OUT"
SUPERVISELY = "Supervisely's JSON; export it there as COCO, Pascal VOC or YOLO"
FIFTYONE = (
    'FiftyOne\'s own JSON; write COCO with: dataset.export("OUT", dataset_type=fiftyone.types.COCODetectionDataset)'
)
LABELBOX = "Labelbox's JSON; labelbox.data.serialization or Roboflow turn it into COCO"
CVAT_XML = "CVAT's own XML; export the task as COCO 1.0, PASCAL VOC 1.1 or Ultralytics YOLO"
TABLE = (
    "not a table that is read: expected the columns filename, class, xmin, ymin, xmax, ymax (and width, height) in its "
    "first line; or export the same data set as COCO or Pascal VOC"
)
TFRECORD = "TFRecords; export the same data set as COCO or Pascal VOC, or give the files that they were made from"
DARKNET_CFG = "Darknet's network, not its data; name obj.data, train.txt or the folder of pictures and labels"


_OF_LIST = {
    "": [{"ann"}],
    CREATE_ML: [{"image", "annotations"}],
    LABEL_STUDIO: [{"data", "annotations"}, {"data", "completions"}, {"data", "predictions"}, {"image", "label"}],
    LABELBOX: [{"data_row"}, {"Labeled Data"}],
}
"""Tools, and the keys by which the first entry of a list shows them; `ann` is our own list's."""
_OF_OBJECT = {
    LABELME: [{"shapes", "imagePath"}, {"shapes", "imageData"}],
    VIA: [{"_via_img_metadata"}, {"_via_settings"}],
    DATUMARO: [{"items", "categories"}],
    FIFTYONE: [{"samples"}],
    SUPERVISELY: [{"size", "objects"}, {"classes", "projectType"}],
    LABELBOX: [{"data_row"}],
}
"""Tools, and the keys by which an object shows them."""


def foreign_json(content: Any) -> str:
    """Which tool wrote a JSON file that is neither COCO nor a list of {filename, ann}, and how to convert it.

    '' for a list of {filename, ann}, and for a file of an unknown tool.
    """
    is_list = isinstance(content, list)
    shown = content[0] if is_list and content else content
    if not isinstance(shown, Mapping):
        return ""
    tools = (_OF_LIST if is_list else _OF_OBJECT).items()
    tool = next((tool for tool, signs in tools if any(keys <= set(shown) for keys in signs)), "")
    first = next((value for value in shown.values() if isinstance(value, Mapping)), {})
    return VIA if not tool and not is_list and {"regions", "filename"} <= set(first) else tool
