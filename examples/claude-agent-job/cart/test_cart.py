import unittest

from cart import Cart


class CartTest(unittest.TestCase):
    def test_an_empty_cart_is_free(self):
        self.assertEqual(Cart().total(), 0)

    def test_a_discount_is_in_percent(self):
        cart = Cart()
        cart.add("tea", 400)
        self.assertEqual(cart.total(discount=25), 300)

    def test_every_piece_is_paid(self):
        cart = Cart()
        cart.add("cup", 250, count=4)
        self.assertEqual(cart.total(), 1000)
