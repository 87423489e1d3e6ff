"""The alignment study: does the alignment score go with accuracy and hallucination?"""
