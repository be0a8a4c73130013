"""Models that predict a class and a mask for each query, as graphs; the program that runs one makes results of them.

What is found depends on the size that masks are wanted at, which the graph does not know.

Letters: `N` images, `Q` queries, `K` classes, `h`, `w` height and width of a mask in cells, `H`, `W` those of the
padded input in pixels.
"""

from collections.abc import Mapping
from typing import Any

import torch

from .graph import ExportGraph, GraphOptions, NotExportableError, OpenSizes

__all__ = ["MaskClassificationGraph"]


class MaskClassificationGraph(ExportGraph):
    """Base of such models; a subclass defines `queries` and `rules`."""

    task = "mask_classification"
    output_names = ("class_scores", "mask_logits", "padded_sizes")

    def __init__(self, model: Any, options: GraphOptions):
        super().__init__(model, options)
        if options.masks == "pasted":
            raise NotExportableError(
                f"masks of {type(model).__name__} belong to queries and cover the whole image: there are no boxes to "
                "paste them from. Leave out --masks pasted"
            )
        self.sizes_as_formulas = True  # positions of cells depend on the sizes of maps

    def queries(self, images: torch.Tensor, inside: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Find objects.

        Args:
            images: normalised and padded, `Tensor[N, C, H, W]`.
            inside: where the images are, bool `Tensor[N, H, W]`.

        Returns:
            Probabilities of classes `Tensor[N, Q, K + 1]`, the last of which is for no object, and logits of masks
            `Tensor[N, Q, h, w]`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define queries()")

    def rules(self) -> dict[str, Any]:
        """How results are made of queries: "mask_classification" in `model.json`; plain values.

        Of each kind of results a dictionary, or None where the model does not give it:

        * "instances": "classes" that candidates may have; "candidates", how many pairs of a query and a class, the most
          probable ones, are looked at (None: as many as there are queries), or with "one_for_each_query" the best class
          of every query; and "kept_classes", those that come out;
        * "semantic": "enlarge", whether "masks" or semantic "scores" are resized from the image in the input to the
          original one; and "merged_things", how many of the first classes count as one;
        * "panoptic": "object_threshold", which the probability of a class exceeds; "overlap_threshold", the share of
          its mask that is left to a query, and "may_equal_threshold"; "whole", whether a mask is where the probability
          of the "mask" is at least 0.5, or its "product" with that of the class; "things", those of the classes; and
          "first_stuff", what is subtracted from a class of stuff.
        """
        raise NotImplementedError(f"{type(self).__name__} must define rules()")

    def class_counts(self) -> tuple[int, int]:
        """How many names things and stuff have."""
        raise NotImplementedError(f"{type(self).__name__} must define class_counts()")

    def forward(
        self, images: torch.Tensor, image_sizes: torch.Tensor, score_threshold: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """See `ExportGraph.forward`; there is no score threshold."""
        with torch.no_grad():
            pixels = self.normalized(images, image_sizes)
            with OpenSizes():
                scores, masks = self.queries(pixels, self.inside(image_sizes, pixels.shape[-2:]))
            size = torch.stack([torch.scalar_tensor(x, dtype=torch.int64) for x in pixels.shape[-2:]])
            return scores, masks, torch.ones_like(image_sizes) * size.to(image_sizes.device)

    def _padding(self) -> tuple[int, int]:
        return 0, self.model.size_divisibility

    def to_results(self, outputs: Mapping[str, torch.Tensor], image_sizes: torch.Tensor) -> list[dict[str, Any]]:
        """See `ExportGraph.to_results`; a result has the outputs of its image."""
        return [{name: outputs[name][i] for name in self.output_names} for i in range(image_sizes.shape[0])]
