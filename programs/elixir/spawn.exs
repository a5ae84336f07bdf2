# tasks.exs with bare processes in the place of tasks: what `spawn` takes, to compare (docs/runtimes/beam.md).
[count, seconds] = System.argv()
count = String.to_integer(count)
{seconds, ""} = Float.parse(seconds)
pause = round(seconds * 1000)
parent = self()
IO.puts("launch=#{count}")

for _ <- 1..count do
  spawn(fn ->
    send(parent, :alive)
    receive do: (:go -> :ok), after: (pause -> :ok)
    send(parent, :done)
  end)
end

for _ <- 1..count, do: receive(do: (:alive -> :ok))
IO.puts("alive=#{count}")
for _ <- 1..count, do: receive(do: (:done -> :ok))
IO.puts("live_peak=#{count}")
