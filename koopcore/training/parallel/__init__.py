"""One decision made together by many processes, and parameters that are spread over them."""
