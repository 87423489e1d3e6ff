"""From a picture file to pixels, and what each visual token shows of it."""
