"""A shopping cart: what the agent reviews."""


class Cart:
    def __init__(self):
        self.lines = []

    def add(self, name, price, count=1):
        """Adds a product; `price` is in cents."""
        self.lines.append((name, price, count))

    def total(self, discount=0):
        """What is to be paid, in cents; `discount` is in percent."""
        total = sum(price for _, price, _ in self.lines)
        return total - total * discount // 100
