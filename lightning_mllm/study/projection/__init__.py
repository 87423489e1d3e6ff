"""The projection study: what does the projection carry, epoch by epoch and policy by policy?"""
