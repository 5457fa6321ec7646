"""Did we miss anything: pure comparison of two books. Knows the rules' values, and neither driver nor clock."""
