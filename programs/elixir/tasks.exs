# N Elixir tasks (one BEAM process each) that each sleep SECONDS.
# The BEAM refuses to start more processes than `+P` allows, so it must be given.

defmodule Tasks do
  @live 1
  @peak 2

  def run(tasks, milliseconds) do
    counters = :atomics.new(2, [])

    IO.puts("launch=#{tasks}")

    1..tasks
    |> Enum.map(&start(&1, fn -> sleep(counters, tasks, milliseconds) end))
    |> Task.await_many(:infinity)

    IO.puts("live_peak=#{:atomics.get(counters, @peak)}")
  end

  defp start(number, function) do
    Task.async(function)
  rescue
    error in SystemLimitError ->
      IO.puts(:stderr, "failed at #{number - 1}: #{Exception.message(error)}")
      System.halt(1)
  end

  defp sleep(counters, tasks, milliseconds) do
    now = :atomics.add_get(counters, @live, 1)
    raise_peak(counters, now, :atomics.get(counters, @peak))
    if now == tasks, do: IO.puts("alive=#{now}")
    Process.sleep(milliseconds)
    :atomics.sub(counters, @live, 1)
  end

  defp raise_peak(_counters, now, peak) when now <= peak, do: :ok

  defp raise_peak(counters, now, peak) do
    case :atomics.compare_exchange(counters, @peak, peak, now) do
      :ok -> :ok
      seen -> raise_peak(counters, now, seen)
    end
  end
end

case System.argv() do
  [tasks, seconds] ->
    {seconds, ""} = Float.parse(seconds)
    Tasks.run(String.to_integer(tasks), round(seconds * 1000))

  _ ->
    IO.puts(:stderr, "usage: tasks.exs N SECONDS")
    System.halt(2)
end
