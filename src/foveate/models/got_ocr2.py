"""GOT-OCR 2, and PP-Chart2Table: SAM's tower and convolutions make 256 tokens; methods act in its language model."""

from __future__ import annotations

from foveate.models.language_only import SAM, language_only

ALSO = ("pp_chart2table",)
FAMILY = language_only("got_ocr2", "vision_tower", SAM)
