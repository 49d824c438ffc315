"""Annotation files of tools that are not read, told by content: what a file is, and the export that is read."""

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


def foreign_json(content: Any) -> str:
    """What a JSON file is that is neither COCO nor a list of {filename, ann}, and the way; '' where it is not known."""
    if isinstance(content, list):
        first = content[0] if content and isinstance(content[0], Mapping) else {}
        if "ann" in first:
            return ""
        if "data" in first and ("annotations" in first or "completions" in first or "predictions" in first):
            return LABEL_STUDIO
        if "image" in first and ("annotations" in first or "label" in first):
            return CREATE_ML if "annotations" in first else LABEL_STUDIO
        if "data_row" in first or "Labeled Data" in first:
            return LABELBOX
        return ""
    if not isinstance(content, Mapping):
        return ""
    if "shapes" in content and ("imagePath" in content or "imageData" in content):
        return LABELME
    if "_via_img_metadata" in content or "_via_settings" in content:
        return VIA
    if "items" in content and "categories" in content:
        return DATUMARO
    if "samples" in content:
        return FIFTYONE
    if ("size" in content and "objects" in content) or ("classes" in content and "projectType" in content):
        return SUPERVISELY
    entry = next((value for value in content.values() if isinstance(value, Mapping)), {})
    if "regions" in entry and "filename" in entry:
        return VIA
    if "data_row" in content:
        return LABELBOX
    return ""
