# N Elixir tasks (one BEAM process each) that each sleep SECONDS.
# The BEAM refuses to start more processes than `+P` allows, so it must be given.

defmodule Tasks do
  @live 1
  @peak 2

  def run(tasks, milliseconds) do
    counters = :atomics.new(2, [])

    IO.puts("launch=#{tasks}")

    task = task({bytes("TASK_STACK_DEPTH"), bytes("TASK_PAYLOAD")}, counters, tasks, milliseconds)

    1..tasks
    |> Enum.map(&start(&1, task))
    |> Task.await_many(:infinity)

    IO.puts("live_peak=#{:atomics.get(counters, @peak)}")
  end

  defp task({0, 0}, counters, tasks, milliseconds), do: fn -> sleep(counters, tasks, milliseconds) end

  defp task({depth, payload}, counters, tasks, milliseconds),
    do: fn -> with_load(depth, payload, fn -> sleep(counters, tasks, milliseconds) end) end

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
    wait(counters, tasks, milliseconds)
    :atomics.sub(counters, @live, 1)
  end

  # The first to be started go on waiting until the last has come.
  defp wait(counters, tasks, milliseconds) do
    Process.sleep(milliseconds)
    if :atomics.get(counters, @peak) < tasks, do: wait(counters, tasks, milliseconds)
  end

  # Sleeps with a binary of `payload` bytes, `depth` bytes further down the stack.
  defp with_load(depth, payload, sleep) do
    held = :binary.copy(<<1>>, payload)
    # A call whose result is still to be used takes one word, the address to go on at.
    descend(div(depth, 8), sleep)
    byte_size(held)
  end

  defp descend(0, sleep) do
    sleep.()
    0
  end

  defp descend(levels, sleep), do: 1 + descend(levels - 1, sleep)

  defp bytes(variable), do: String.to_integer(System.get_env(variable, "0"))

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
