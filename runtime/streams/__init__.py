"""Where frames come from: pictures, videos, webcams and cameras; and videos that are written."""

from isodet.old_names import keep_old_names

keep_old_names(__name__)
