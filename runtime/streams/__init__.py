"""Where frames come from: pictures, videos, webcams and cameras; and videos that are written."""
