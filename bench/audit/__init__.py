"""The audit for masked gradients: does an attacked figure deserve belief?"""
