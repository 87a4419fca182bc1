"""Settings that plans of pair makers share."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["RewardChoice"]


class RewardChoice(BaseModel):
    """One reward that scores what was made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="name, module:function, http address or ensemble file")
    output: str = Field("", description="which of its values; default: the first")
    title: str = Field("", description="what columns call it; default: its name")
    weights: str | None = Field(None, description="folder with its files")
    dtype: str = "float32"
    batch_size: int = Field(16, ge=1)
    options: dict[str, Any] = Field(default_factory=dict)

    @property
    def column(self) -> str:
        """What columns call it."""
        own = self.name.rpartition(":")[2] or self.name
        return self.title or (f"{own}.{self.output}" if self.output else own)
