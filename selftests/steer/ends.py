rows=[]
