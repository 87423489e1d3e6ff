"""What each visual token of each view shows of a picture, in closed form.

All that happens to a picture before the patches (padding, resizing, cropping, cutting into tiles)
scales, shifts and cuts each of its two directions independently.
"""

from lightning_mllm.data.images.views.find import count_class_tokens, count_views, find_views
from lightning_mllm.data.images.views.view import View

__all__ = ["View", "count_class_tokens", "count_views", "find_views"]
