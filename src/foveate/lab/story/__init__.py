"""What became of every visual token in a call, as plain data: from a handle's trace to frames that a page can draw.

`tell` walks through the sites in the order of the forward pass and gives a `Story`. Shared by the commands.
"""

from foveate.lab.story.content import Case, Content, Told
from foveate.lab.story.steps import Step
from foveate.lab.story.telling import Act, Story, tell

__all__ = ["Act", "Case", "Content", "Step", "Story", "Told", "tell"]
