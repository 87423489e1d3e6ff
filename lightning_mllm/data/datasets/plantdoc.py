"""PlantDoc: photographs of leaves, healthy and diseased."""

from __future__ import annotations

from lightning_mllm.data.datasets.published import Published, PublishedFolders


class PlantDoc(PublishedFolders):
    """The cropped images of PlantDoc (Singh et al., CoDS-COMAD 2020).

    They are in `github.com/pratikkayal/PlantDoc-Dataset`. The layout is `root/train/<class>/<file>`
    and `root/test/<class>/<file>`; underscores in class names become spaces. One class has training
    images only.
    """

    published = Published(
        images={"train": 2_342, "test": 236},
        classes={"train": 28, "test": 27},
        source="the folders of the repository; its paper says 2,598 images and 17 classes of "
        "diseases",
    )
