"""One file for each library, the same two functions in each.

`grid(case)` lists the choices that are tried when it is tuned; `hypergradient(case, choice)`
returns (f, outer, x0, theta, tol, adjoint_tol) -> d φ(x*(θ), θ) / dθ, as a user of the library
would write it. The empty choice {} is the library as it comes, every option at its default."""
