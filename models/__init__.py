"""The networks: tensors in, tensors out.

One alphabet of dimensions, here and everywhere: `B` images, `H W` pixels, `L` pyramid levels, `N` points
(anchors) over all levels, `C` classes, `G` ground-truth boxes, `K` candidates before NMS, `D` detections
kept. Boxes are float32 pixels `x1, y1, x2, y2` without +1; labels are 0..C-1.
"""

from isodet.errors import IsodetError as IsodetError
