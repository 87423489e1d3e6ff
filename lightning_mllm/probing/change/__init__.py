"""What a projection changes: which pictures are neighbours, and what a linear map reads back."""
