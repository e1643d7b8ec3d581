"""Many runs compared: tables with intervals and tests, figures, one page; and a sweep watched."""
